"""What `zcache status` says of a store that is well, and of one that is not."""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.pages import raw_page
from tests.support.stores import new_object, put, settings_of, small_store, tier_of
from zcache.client import command as cli
from zcache.control.ask import ask
from zcache.control.listener import ControlSocket
from zcache.control.status import gather_status
from zcache.errors import StoreFull
from zcache.page_loop.choice import described
from zcache.pages.entry import decode_zpage
from zcache.pages.tmem import TmemObject
from zcache.store.store import Store
from zcache.tiers.damage import REMEMBERED_FRAMES, UNREADABLE
from zcache.tiers.health import Health


class Served:
    """A store of four frames that are all in use, behind a control socket."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        self.store: Store = small_store(4, 16)
        self.tier = tier_of(self.store)
        self.pages: TmemObject = new_object(self.store, 16)
        put(self.store, self.pages, 0, *(raw_page(rng) for _ in range(4)))


@pytest.fixture
def served(tmp_path: Path, rng: random.Random) -> Iterator[Served]:
    served = Served(tmp_path / "control", rng)
    socket = ControlSocket(served.path)
    socket.start(
        served.store,
        lambda: gather_status(served.store, served.pages, {"memory_lock": False}),
        settings_of(served.store),
    )
    yield served
    socket.close()


def said(served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints."""
    monkeypatch.setattr(sys, "argv", ["zcache", "status", "--control", str(served.path), *words])
    assert cli.main() == 0
    return capfd.readouterr().out


def test_a_store_that_is_well(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = said(served, monkeypatch, capfd).splitlines()
    assert lines[2:] == ["state: OK", described().partition(" (")[0], "not protected: memory_lock"]
    status = json.loads(said(served, monkeypatch, capfd, "--json"))
    assert status["state"] == "ok" and status["reasons"] == []


def test_a_store_that_is_not(
    served: Served, rng: random.Random, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A line for each reason, the same as in the JSON; the counters stay when the reasons are
    gone."""
    served.tier.failing_writes = 100
    with pytest.raises(StoreFull):
        put(served.store, served.pages, 4, raw_page(rng))
    status = ask(served.path, "status")
    assert status["state"] == "degraded" and len(status["reasons"]) == 2
    lines = said(served, monkeypatch, capfd).splitlines()
    assert lines[2:5] == ["state: DEGRADED", *(f"  {reason}" for reason in status["reasons"])]
    assert "EIO: injected write error" in lines[3] and "4 frames kept in RAM" in lines[3] and "1 page lost" in lines[4]
    assert lines[6] == "since the start: 1 failed puts, 6 writeback errors"
    served.tier.failing_writes = 0
    served.tier.clock.sleep(10)
    put(served.store, served.pages, 4, raw_page(rng))
    lines = said(served, monkeypatch, capfd).splitlines()
    assert (lines[2], lines[4]) == ("state: OK", "since the start: 1 failed puts, 6 writeback errors")


def test_memory_that_changed_by_itself_is_never_over(served: Served) -> None:
    served.store.statistics.decode_errors += 1
    assert "memory cannot be trusted" in ask(served.path, "status")["reasons"][0]


def test_more_damaged_frames_than_are_remembered(served: Served) -> None:
    """The memory for them is bounded; what is said is then a lower bound, and goes with the frames
    all the same."""
    damage, frames = served.store.damage, served.store.frames
    frame = decode_zpage(served.pages.table.entries[0]).frame
    for number in range(REMEMBERED_FRAMES + 10):
        damage.mark(frame if number == 0 else (1 << 20) + number, frames.birth[frame], UNREADABLE)
    assert len(damage.frames) == REMEMBERED_FRAMES
    damage.frames = {frame: (frames.birth[frame], UNREADABLE)}
    assert "1 frame below could not be read" in ask(served.path, "status")["reasons"][0]
    served.store.flush(served.pages, 0, 1)
    assert ask(served.path, "status")["state"] == "ok"


def test_a_slow_transfer_is_forgotten_by_the_next_that_is_slow_a_while_later() -> None:
    clock = FakeClock()
    health = Health(clock)
    for seconds, said in (9.0, "9.0 s"), (2.0, "9.0 s"), (3.0, "3.0 s"):
        if said == "3.0 s":
            clock.sleep(61)
            assert health.slowness() == ""
        transfer = health.begin_transfer()
        clock.sleep(seconds)
        assert health.end_transfer(transfer)
        assert health.slowness() == f"a transfer took {said}, 0 s ago"
