"""The keeper's loop when something it does fails: nothing of that may keep it from replacing a
server that has died.

Its servers are sleeping programs here; the real ones are in tests/nbd/test_keeper.py.
"""

import os
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.keepers import Looked, Servers
from zcache.image.image import new_descriptor
from zcache.image.signs import Signs
from zcache.keeper.channel import BEGIN, BEGIN_ALONE
from zcache.keeper.reserve import OOM_SECONDS
from zcache.keeper.state import StateFolder
from zcache.keeper.succession import STANDBY_SECONDS
from zcache.steps import StepsWatch


def stood_still() -> StepsWatch:
    """The steps of a start that has said nothing for a minute and a half."""
    clock = FakeClock()
    steps = StepsWatch(clock.now)
    os.close(steps.writer)
    clock.seconds += 90
    return steps


@pytest.mark.parametrize("is_served", [True, False])
def test_what_starts_beside_a_server_has_as_long_for_one_step_as_for_all(
    looked: Looked, servers: Servers, is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a guest that thrashes that was a minute and a half; it was killed after one, again and
    again."""
    keeper = looked.keeper
    looked.standby.is_heir = False
    replacement = keeper.succession.replacement = servers.start()
    for each in (looked.standby, replacement):
        each.has_said_ready = False
        each.steps = stood_still()
    replacement.channel.recv(1)
    monkeypatch.setattr(keeper.succession, "serves", lambda: is_served)
    looked.turns(2)
    assert not looked.standby.has_ended() and not replacement.has_ended()
    for each in (looked.standby, replacement):
        each.began_seconds -= STANDBY_SECONDS
    keeper.watch_starts()
    assert [each.wait(10 if is_served else 0) for each in (looked.standby, replacement)] == [is_served] * 2
    assert len([line for line in looked.said if "stands still" in line]) == (2 if is_served else 0)


def test_a_server_that_stands_still_is_named_once_however_long_it_takes_to_die(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an uninterruptible wait it does not die before that ends; it was said ten times a
    second."""
    looked.first.steps = stood_still()
    looked.first.steps.saying = 1
    kills: list[None] = []
    monkeypatch.setattr(looked.first, "kill", lambda: kills.append(None))
    looked.turns(5)
    monkeypatch.undo()
    assert len(kills) == 5
    assert len([line for line in looked.said if "the server stands still" in line]) == 1


class Lent:
    """A reserve, and what was done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.is_empty = False

    def lend(self, is_all: bool) -> None:
        self.done.append("lend all" if is_all else "lend")

    def is_used_up(self) -> bool:
        return self.is_empty

    def kill_a_program(self) -> None:
        self.done.append("kill")
        self.is_empty = False

    def take_back(self) -> None:
        self.done.append("take back")

    def put_back(self) -> None:
        self.done.append("put back")

    def remember(self) -> None:
        self.done.append("remember")

    def since(self) -> list[str]:
        done, self.done = self.done, []
        return done


@pytest.fixture
def lent(looked: Looked, monkeypatch: pytest.MonkeyPatch) -> Lent:
    """The kernel swaps to the device."""
    lent = Lent()
    monkeypatch.setattr(looked.keeper, "_reserve", lent)
    looked.keeper.device.name = "/dev/nbd0"
    monkeypatch.setattr(looked.keeper.device.swaps, "find", lambda device: device)
    return lent


def test_a_server_from_disk_is_lent_the_reserve_and_leaves_no_heir(
    looked: Looked, servers: Servers, lent: Lent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server and its standby have died; until another serves all memory that can be had is for
    that."""
    keeper = looked.keeper
    looked.turns(2)
    assert lent.since() == ["take back", "remember", "take back"]
    looked.standby.kill()
    looked.first.kill()
    assert looked.first.wait(10) and looked.standby.wait(10)
    keeper.succession.rest.end_seconds = 0
    looked.turns(1)
    assert lent.since()[0] == "lend all"
    monkeypatch.setattr(keeper.succession, "serves", lambda: False)
    looked.turns(3)
    third, channel = servers.started[2]
    assert keeper.succession.server is third and set(lent.since()) == {"lend all"}
    assert channel.recv(1) == BEGIN_ALONE
    lent.is_empty = True
    looked.turns(1)
    assert lent.since() == ["lend all"], "it has just begun"
    keeper.heartbeat.seconds -= 2 * OOM_SECONDS
    looked.turns(1)
    assert lent.since() == ["lend all", "kill"] and any("OOM" in line for line in looked.said)
    monkeypatch.setattr(keeper.succession, "serves", lambda: True)
    looked.turns(1)
    assert lent.since() == ["take back"]
    keeper.end()
    assert lent.since() == ["put back"]


def test_a_standby_that_is_ready_is_lent_only_what_is_usually_reserved(
    looked: Looked, servers: Servers, lent: Lent, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent.is_empty = True
    assert looked.replaces_a_server_that_dies()
    monkeypatch.setattr(looked.keeper.succession, "serves", lambda: False)
    looked.turns(2)
    assert set(lent.since()) == {"lend", "take back", "remember"}
    assert servers.started[1][1].recv(1) == BEGIN


def test_without_swap_nothing_is_lent(looked: Looked, lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs' memory is touched only for pages that somebody may want back."""
    monkeypatch.setattr(looked.keeper.device.swaps, "find", lambda _device: None)
    assert looked.replaces_a_server_that_dies()
    assert "lend" not in " ".join(lent.since())


def test_between_swap_up_s_last_steps_the_keeper_does_not_end(looked: Looked, tmp_path: Path) -> None:
    """It is armed, so swapon comes next, and /proc/swaps does not know of it yet."""
    (tmp_path / "reconnection").touch()
    looked.keeper.signals.is_ending = True
    looked.keeper.image.signs = None
    looked.turns(2)
    assert not looked.first.has_ended()
    StateFolder(tmp_path).disarm_keeper()
    looked.keeper.signals.is_ending = True
    assert looked.keeper.turn() == 0


@pytest.mark.parametrize("duty", ["_lend_reserve", "_keep_image", "_take_files", "_prepare", "_replace_on_request"])
def test_whatever_cannot_be_done_the_server_is_replaced(
    looked: Looked, duty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(133, "Memory page has hardware error")

    monkeypatch.setattr(looked.keeper, duty, fail)
    assert looked.replaces_a_server_that_dies()
    assert len([line for line in looked.said if "hardware" in line]) <= 2  # it is not said ten times a second
    looked.keeper.signals.is_ending = True
    assert looked.keeper.turn() == 0


def test_swap_up_is_not_told_to_go_on_with_an_image_that_cannot_be_kept(
    tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Looked(tmp_path, servers, monkeypatch)
    looked.keeper.device.is_armed = False
    (tmp_path / "armed").unlink()

    def fail() -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(looked.keeper.image, "keep", fail)
    looked.turns(2)
    assert not (tmp_path / "armed").exists()
    monkeypatch.undo()


def test_a_new_server_is_seen_only_when_the_last_one_serves_no_more() -> None:
    """`_serves` looks at the pid, then at the epoch."""
    descriptor = new_descriptor()
    os.ftruncate(descriptor, 1 << 16)
    signs = Signs(descriptor)
    written: list[int] = []

    class Words:
        def __init__(self) -> None:
            self.words = signs.words

        def __getitem__(self, number: int) -> int:
            return self.words[number]

        def __setitem__(self, number: int, value: int) -> None:
            written.append(number)
            self.words[number] = value

    signs.words = Words()  # type: ignore[assignment]
    signs.begin_epoch()
    assert written[-2:] == [Signs.EPOCH, Signs.PID]
    os.close(descriptor)
