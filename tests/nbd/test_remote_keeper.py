"""The keeper with servers whose frames are at engines: who takes over goes on with what is there.

What an engine holds is compared with what the image names: no frame less, and none more.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.nbd.test_keeper import Keeper, servers_of, upgrade
from tests.support.engines import Engine, engines
from zcache.control.ask import ask
from zcache.image import image
from zcache.image.image import Geometry, Image, read_header
from zcache.image.signs import JSON_BYTES
from zcache.remote.accounts import name_of
from zcache.remote.peer import READERS
from zcache.remote.tables import Tables

PAGES: Final = 3072
RUN_PAGES: Final = 32
#: The least frames that must be at engines before anything is done to them.
LEAST_FRAMES: Final = 60
#: Each server's: readers, the writer, and who asks.
CONNECTIONS: Final = READERS + 2


class Swap:
    """A keeper over two engines, and what was written to it; `copies` of each frame."""

    def __init__(self, folder: Path, at: list[Engine], copies: int, rng: random.Random) -> None:
        self.engines, self.copies, self._rng = at, copies, rng
        where = [f"remote={engine.url()}" for engine in at]
        more = [f"backing={folder}/backing", "remote_copies=1"] if copies == 1 else ["overcommit=yes"]
        self.keeper = Keeper(folder / "state", ("size=32M", "budget=2M", "remote_budget=64M", *where, *more))
        self.pages: dict[int, bytes] = {}
        self.client: Any = self.keeper.connect()
        self.keeper.arm()

    def write(self, count: int = PAGES) -> None:
        """So many pages, in runs, anywhere."""
        for first in self._rng.sample(range(0, PAGES, RUN_PAGES), count // RUN_PAGES):
            for number in range(first, first + RUN_PAGES):
                self.pages[number] = self._rng.randbytes(3000).ljust(4096, b"\0")
            run = b"".join(self.pages[number] for number in range(first, first + RUN_PAGES))
            self.client.pwrite(run, first * 4096)

    def read(self) -> None:
        """All of them are as they were written."""
        for number, page in self.pages.items():
            assert self.client.pread(4096, number * 4096) == page, f"page {number}"

    def status(self) -> dict[str, Any]:
        return ask(self.keeper.folder.control, "status")

    def fill(self) -> None:
        """Until frames are at engines, and nothing is on its way there."""
        self.write()
        while self.status()["remote_frames"] < LEAST_FRAMES:
            self.write(4 * RUN_PAGES)  # of one copy, what comes in haste is passed over
        self.keeper.until(self.is_tidy)

    def kill_server(self) -> None:
        os.kill(self.keeper.signs().pid, signal.SIGKILL)

    def go_on(self) -> None:
        """With the next server."""
        self.client = self.keeper.connect()
        self.keeper.until(self.keeper.serves)

    def tables(self) -> Tables:
        """As the image has them now."""
        descriptor = image.of_process(self.keeper.identity.pid)
        try:
            header = read_header(descriptor)
            geometry = Geometry(**{field: header[field] for field in Geometry._fields})
            return Tables(geometry.remote_slots, Image(descriptor, geometry).section)
        finally:
            os.close(descriptor)

    @property
    def name(self) -> str:
        descriptor = image.of_process(self.keeper.identity.pid)
        try:
            return name_of(bytes.fromhex(read_header(descriptor)["secret"]))
        finally:
            os.close(descriptor)

    def named(self) -> list[set[bytes]]:
        """The keys that the image says are at each engine."""
        tables, found = self.tables(), [set[bytes]() for _ in self.engines]
        for slot in range(1, tables.slot_count + 1):
            for number in filter(None, tables.holders_of(slot)):
                key = f"zcache:default:{self.name}:{slot}:{tables.generation[slot]}"
                found[tables.lanes[number]].add(key.encode())
        return found

    def held(self) -> list[set[bytes]]:
        """The keys of frames, whoever's, that are at each engine."""
        return [{key for key in keys_of(engine) if key[-1:].isdigit()} for engine in self.engines]

    def is_tidy(self) -> bool:
        """Each frame has all of its copies, and there is nothing else."""
        named, tables = self.named(), self.tables()
        both = [tables.holders_of(slot) for slot in range(1, tables.slot_count + 1)]
        counts = {sum(1 for number in pair if number) for pair in both} - {0}
        return named == self.held() and counts <= {self.copies} and bool(named[0])

    def tidied(self) -> None:
        self.keeper.until(self.is_tidy)
        assert {key.split(b":")[2] for engine in self.engines for key in keys_of(engine)} == {self.name.encode()}
        assert ask(self.keeper.folder.control, "check")["balanced"]
        status = self.status()
        assert status["remote_lost_frames"] == 0 and not status["lost_pages"], status

    def close(self) -> None:
        self.keeper.close()
        # The swap is over: nothing of it stays.
        assert [keys_of(engine) for engine in self.engines if engine.is_running] == [[], []], self.keeper.log()


def keys_of(engine: Engine) -> list[bytes]:
    keys = engine.call("KEYS", "*")
    assert isinstance(keys, list)
    return keys


@pytest.fixture
def both(tmp_path: Path) -> Iterator[list[Engine]]:
    with engines(tmp_path, 2, port=0) as found:
        yield found


@pytest.fixture(params=[2, 1], ids=["two-copies", "one-copy"])
def swap(request: pytest.FixtureRequest, tmp_path: Path, both: list[Engine], rng: random.Random) -> Iterator[Swap]:
    swap = Swap(tmp_path, both, request.param, rng)
    try:
        yield swap
    finally:
        swap.close()


def kill(swap: Swap) -> None:
    swap.kill_server()


def kill_standby_too(swap: Swap) -> None:
    server = swap.keeper.signs().pid
    for pid in sorted(map(int, servers_of(swap.keeper.folder)), key=lambda pid: pid == server):
        os.kill(pid, signal.SIGKILL)


def kill_after_an_engine_was_restarted(swap: Swap) -> None:
    """Empty, just before."""
    swap.engines[0].kill()
    swap.engines[0].start()
    swap.kill_server()


def upgrade_it(swap: Swap) -> None:
    swap.client.shutdown()
    upgrade(swap.keeper)


@pytest.mark.parametrize("replace", [kill, kill_standby_too, kill_after_an_engine_was_restarted, upgrade_it])
def test_who_takes_over_goes_on_with_the_frames_at_engines(swap: Swap, replace: Callable[[Swap], None]) -> None:
    for _ in range(2):
        swap.fill()
        name = swap.status()["remote_name"]
        assert name == swap.name
        replace(swap)
        swap.go_on()
        swap.read()
        assert swap.status()["remote_name"] == name
        assert swap.status()["remote_gets"] > 0
        swap.tidied()


@pytest.mark.parametrize("is_paused", [True, False], ids=["silent", "not-there"])
def test_an_engine_that_is_out_of_reach_keeps_nobody_from_taking_over(swap: Swap, is_paused: bool) -> None:
    """And once it is back it is as it was, or is told apart from what it was."""
    swap.fill()
    engine = swap.engines[1]
    if is_paused:
        engine.pause()
    else:
        engine.kill()
    swap.kill_server()
    swap.go_on()
    swap.read()
    assert any("out of reach" in reason for reason in swap.status()["reasons"])
    swap.write(PAGES // 4)
    swap.read()
    if is_paused:
        engine.resume()
    else:
        engine.start()
    swap.keeper.until(lambda: not swap.status()["reasons"])
    swap.tidied()
    swap.read()


def test_a_server_that_is_killed_as_it_writes_leaves_nothing_that_nobody_names(swap: Swap) -> None:
    swap.fill()
    for _ in range(3):
        swap.write(PAGES // 2)
        swap.kill_server()
        swap.go_on()
        swap.read()
    swap.tidied()


def test_a_standby_holds_no_connection_and_leaves_nothing_of_its_trial(swap: Swap) -> None:
    """Nor does one that is started from disk beside a server that serves, as in an upgrade."""
    swap.fill()

    def only_the_server_is_connected() -> bool:
        lists = [engine.call("CLIENT", "LIST") for engine in swap.engines]
        return [clients.count(b"user=default") for clients in lists if isinstance(clients, bytes)] == [CONNECTIONS] * 2

    assert len(servers_of(swap.keeper.folder)) == 2
    assert only_the_server_is_connected()
    server = swap.keeper.signs().pid
    (standby,) = {int(pid) for pid in servers_of(swap.keeper.folder)} - {server}
    os.kill(standby, signal.SIGKILL)
    swap.keeper.until(lambda: "starting a standby" in swap.keeper.log())
    swap.read()
    assert swap.status()["writeback_errors"] == 0 and not swap.status()["reasons"]
    swap.kill_server()
    swap.go_on()  # with that one, when it is ready
    swap.keeper.until(only_the_server_is_connected)
    assert swap.keeper.signs().epoch == 2
    swap.read()
    swap.tidied()


def test_an_image_that_says_nothing_of_engines_still_goes_on(tmp_path: Path) -> None:
    """An older version's."""
    keeper = Keeper(tmp_path / "state")
    client = keeper.connect()
    keeper.arm()
    client.pwrite(b"precious" * 512, 4096)
    descriptor = image.of_process(keeper.identity.pid)
    header = os.pread(descriptor, JSON_BYTES, 0).partition(b"\n")[0]
    older = header.replace(b', "remote_slots": 0', b"")
    assert older != header
    os.pwrite(descriptor, older.ljust(len(header)) + b"\n", 0)
    os.close(descriptor)
    client.shutdown()
    upgrade(keeper)
    assert keeper.connect().pread(4096, 4096) == b"precious" * 512
    os.kill(keeper.signs().pid, signal.SIGKILL)
    assert keeper.connect().pread(4096, 4096) == b"precious" * 512
    assert keeper.signs().epoch == 3
    keeper.close()
