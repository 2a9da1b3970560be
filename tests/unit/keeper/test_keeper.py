"""The keeper's loop when something it does fails: nothing of that may keep it from replacing a
server that has died.

Its servers are sleeping programs here; the real ones are in tests/nbd/test_keeper.py.
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from zcache.image.image import Signs, new_descriptor
from zcache.keeper import succession, surroundings, voice
from zcache.keeper.channel import BEGIN, BEGIN_ALONE, READY
from zcache.keeper.keeper import Keeper
from zcache.keeper.reserve import OOM_SECONDS
from zcache.keeper.server_process import ServerProcess
from zcache.keeper.state import StateFolder
from zcache.keeper.succession import STANDBY_SECONDS
from zcache.steps import StepsWatch


class Servers:
    """Programs that say that they are ready, and sleep."""

    def __init__(self) -> None:
        self.started: list[tuple[ServerProcess, socket.socket]] = []
        self.failure: OSError | None = None

    def start(self, *_arguments: object) -> ServerProcess:
        if self.failure:
            raise self.failure
        ours, theirs = socket.socketpair()
        program = subprocess.Popen(["sleep", "60"])
        program.returncode = 0  # it is waited for by its pidfd
        server = ServerProcess(program.pid, ours)
        theirs.send(READY)
        self.started.append((server, theirs))
        return server


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    servers = Servers()
    monkeypatch.setattr(ServerProcess, "start", servers.start)
    yield servers
    for server, channel in servers.started:
        channel.close()
        if server._channel.fileno() >= 0:  # it was not closed
            server.discard()


class Looked:
    """A keeper whose device is connected, with a server that serves and a standby that is ready."""

    def __init__(self, folder: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        monkeypatch.setattr(voice, "say", self.said.append)
        self.keeper = Keeper(StateFolder(folder), folder / "nbd.sock", [], 2)
        self.keeper._device.reconnection = object()  # type: ignore[assignment]
        monkeypatch.setattr(self.keeper.succession, "serves", lambda: True)
        self.turns(2)
        self.first, self.standby = (server for server, _ in servers.started)
        self.standby.is_heir = True
        assert (self.keeper.succession.server, self.keeper.succession.standby) == (self.first, self.standby)

    def turns(self, count: int) -> None:
        for _ in range(count):
            assert self.keeper._turn() is None

    def replaces_a_server_that_dies(self) -> bool:
        self.keeper.succession.server.kill()
        assert self.keeper.succession.server._wait(10)
        self.turns(3)
        return self.keeper.succession.server is self.standby


@pytest.fixture
def looked(tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Looked:
    return Looked(tmp_path, servers, monkeypatch)


def test_a_second_upgrade_that_cannot_start_a_process(looked: Looked, servers: Servers) -> None:
    """While the first one's new code is still starting: that is ended, and nothing is left of it to
    be asked."""
    keeper = looked.keeper
    servers.started.append((new := servers.start(), servers.started[-1][1]))
    new._is_ready = False
    new._channel.recv(1)
    keeper.succession.replacement = new
    keeper._signals.is_to_be_replaced = True
    servers.failure = BlockingIOError(11, "no process can be had")
    looked.turns(3)
    assert keeper.succession.replacement is None
    assert [line for line in looked.said if "no process" in line] == [
        "BlockingIOError: [Errno 11] no process can be had"
    ]
    servers.failure = None
    assert looked.replaces_a_server_that_dies()


def test_new_code_that_cannot_be_started_is_refused(looked: Looked, servers: Servers) -> None:
    refusals: list[bool] = []
    looked.keeper.succession.refuse_upgrade = lambda: refusals.append(True)  # type: ignore[method-assign]
    looked.keeper._signals.is_to_be_replaced = True
    servers.failure = BlockingIOError(11, "no process can be had")
    looked.turns(3)
    assert refusals == [True]


def test_a_second_upgrade_after_the_first_has_died_goes_back_to_the_code_before_both(
    looked: Looked, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = looked.keeper
    keeper._signals.is_to_be_replaced = True
    looked.turns(2)
    new = keeper.succession.server
    assert new not in (looked.first, looked.standby) and keeper.succession.old_standby is looked.standby
    monkeypatch.setattr(keeper.succession, "serves", lambda: False)
    keeper.succession.replacement = servers.start()
    new.kill()
    assert new._wait(10)
    looked.turns(2)
    assert keeper.succession.server is looked.standby


def test_there_is_no_upgrade_without_a_standby_of_the_server_s_code(looked: Looked) -> None:
    """The heir was killed: the standby is of what was on disk then, which need not be what serves
    now."""
    keeper = looked.keeper
    looked.standby.kill()
    assert looked.standby._wait(10)
    looked.turns(1)
    keeper.succession.rest.end_seconds = 0
    looked.turns(2)
    from_disk = keeper.succession.standby
    assert from_disk and from_disk is not looked.standby and from_disk.is_ready()
    refusals: list[bool] = []
    keeper.succession.refuse_upgrade = lambda: refusals.append(True)  # type: ignore[method-assign]
    keeper._signals.is_to_be_replaced = True
    looked.turns(3)
    assert refusals == [True] and any("no way back" in line for line in looked.said)
    assert (keeper.succession.server, keeper.succession.standby, keeper.succession.replacement) == (
        looked.first,
        from_disk,
        None,
    )
    assert not keeper.succession.server.has_ended()


def test_an_upgrade_waits_for_an_heir_that_is_on_its_way(looked: Looked, servers: Servers) -> None:
    keeper = looked.keeper
    looked.standby._is_ready = False
    keeper._signals.is_to_be_replaced = True
    looked.turns(3)
    assert keeper.succession.server is looked.first and keeper.succession.replacement
    servers.started[1][1].send(READY)
    looked.turns(1)
    assert keeper.succession.server is not looked.first and keeper.succession.old_standby is looked.standby


def test_new_code_that_is_ready_serves_when_nothing_else_can(looked: Looked) -> None:
    keeper = looked.keeper
    for server in (looked.standby, looked.first):
        server.kill()
        assert server._wait(10)
    keeper.succession.rest.end_seconds = 1e9
    keeper._signals.is_to_be_replaced = True
    looked.turns(4)
    assert keeper.succession.server not in (looked.first, looked.standby) and not keeper.succession.server.has_ended()


def test_a_standby_that_never_gets_ready_gives_way_when_it_is_needed(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = looked.keeper
    looked.standby._is_ready = False
    monkeypatch.setattr(succession, "STANDBY_SECONDS", 0.0)
    looked.turns(2)
    assert keeper.succession.standby is looked.standby, "the server lives: there is time"
    looked.first.kill()
    assert looked.first._wait(10)
    looked.turns(1)
    assert looked.standby._wait(10)
    keeper.succession.rest.end_seconds = 0
    looked.turns(1)
    keeper.succession.rest.end_seconds = 0
    looked.turns(3)
    assert keeper.succession.server not in (looked.first, looked.standby) and not keeper.succession.server.has_ended()


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
        each._is_ready = False
        each.steps = stood_still()
    replacement._channel.recv(1)
    monkeypatch.setattr(keeper.succession, "serves", lambda: is_served)
    looked.turns(2)
    assert not looked.standby.has_ended() and not replacement.has_ended()
    for each in (looked.standby, replacement):
        each._begin_seconds -= STANDBY_SECONDS
    keeper._watch_starts()
    assert [each._wait(10 if is_served else 0) for each in (looked.standby, replacement)] == [is_served] * 2
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
    looked.keeper._device.name = "/dev/nbd0"
    monkeypatch.setattr(looked.keeper._device._swaps, "find", lambda device: device)
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
    assert looked.first._wait(10) and looked.standby._wait(10)
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
    keeper._heartbeat.seconds -= 2 * OOM_SECONDS
    looked.turns(1)
    assert lent.since() == ["lend all", "kill"] and any("OOM" in line for line in looked.said)
    monkeypatch.setattr(keeper.succession, "serves", lambda: True)
    looked.turns(1)
    assert lent.since() == ["take back"]
    keeper._end()
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


def test_an_heir_that_takes_over_leaves_one_whatever_was_before(looked: Looked, servers: Servers) -> None:
    """As when new code has died at once: back to the old code's heir, which must have one in its
    turn."""
    looked.keeper.succession.is_from_disk = True
    assert looked.replaces_a_server_that_dies()
    assert servers.started[1][1].recv(1) == BEGIN


def test_without_swap_nothing_is_lent(looked: Looked, lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs' memory is touched only for pages that somebody may want back."""
    monkeypatch.setattr(looked.keeper._device._swaps, "find", lambda _device: None)
    assert looked.replaces_a_server_that_dies()
    assert "lend" not in " ".join(lent.since())


def test_between_swap_up_s_last_steps_the_keeper_does_not_end(looked: Looked, tmp_path: Path) -> None:
    """It is armed, so swapon comes next, and /proc/swaps does not know of it yet."""
    (tmp_path / "reconnection").touch()
    looked.keeper._signals.is_ending = True
    looked.keeper._image.signs = None
    looked.turns(2)
    assert not looked.first.has_ended()
    StateFolder(tmp_path).disarm_keeper()
    looked.keeper._signals.is_ending = True
    assert looked.keeper._turn() == 0


@pytest.mark.parametrize("duty", ["_lend_reserve", "_keep_image", "_take_files", "_prepare", "_replace_on_request"])
def test_whatever_cannot_be_done_the_server_is_replaced(
    looked: Looked, duty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(133, "Memory page has hardware error")

    monkeypatch.setattr(looked.keeper, duty, fail)
    assert looked.replaces_a_server_that_dies()
    assert len([line for line in looked.said if "hardware" in line]) <= 2  # it is not said ten times a second
    looked.keeper._signals.is_ending = True
    assert looked.keeper._turn() == 0


def test_swap_up_is_not_told_to_go_on_with_an_image_that_cannot_be_kept(
    tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Looked(tmp_path, servers, monkeypatch)
    looked.keeper._device.is_armed = False
    (tmp_path / "armed").unlink()

    def fail() -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(looked.keeper._image, "keep", fail)
    looked.turns(2)
    assert not (tmp_path / "armed").exists()
    monkeypatch.undo()


def test_an_heir_whose_pid_is_somebody_elses_by_now_is_left_alone() -> None:
    ours, theirs = socket.socketpair()
    heirs, others = socket.socketpair()
    program = subprocess.Popen(["sleep", "60"])
    program.returncode = 0
    server = ServerProcess(program.pid, ours)
    theirs.send(READY)
    assert server.is_ready()
    socket.send_fds(theirs, [b"1"], [heirs.fileno()])
    assert server.heir() is None
    child = subprocess.Popen(["sleep", "60"])
    child.returncode = 0
    socket.send_fds(theirs, [str(child.pid).encode()], [heirs.fileno()])
    heir = server.heir()
    assert heir and heir.pid == child.pid
    heir.discard()
    server.discard()
    for each in (theirs, heirs, others):
        each.close()


def test_an_heir_that_has_died_keeps_no_descriptor_of_its_predecessor() -> None:
    """Its steps were shared with it, and not given back."""
    ours, theirs = socket.socketpair()
    program = subprocess.Popen(["sleep", "60"])
    program.returncode = 0
    steps = StepsWatch()
    os.close(steps.writer)
    server = ServerProcess(program.pid, ours, steps)
    dead = subprocess.Popen(["true"])
    dead.wait()
    heirs, others = socket.socketpair()
    theirs.send(READY)
    assert server.is_ready()
    socket.send_fds(theirs, [str(dead.pid).encode()], [heirs.fileno()])
    assert server.heir() is None
    server.discard()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(steps.fileno())
    for each in (theirs, heirs, others):
        each.close()


def test_a_new_server_is_seen_only_when_the_last_one_serves_no_more() -> None:
    """`_serves` looks at the pid, then at the epoch."""
    descriptor = new_descriptor()
    os.ftruncate(descriptor, 1 << 16)
    signs = Signs(descriptor)
    written: list[int] = []

    class Words:
        def __init__(self) -> None:
            self._words = signs._words

        def __getitem__(self, number: int) -> int:
            return self._words[number]

        def __setitem__(self, number: int, value: int) -> None:
            written.append(number)
            self._words[number] = value

    signs._words = Words()  # type: ignore[assignment]
    signs.begin_epoch()
    assert written[-2:] == [Signs._EPOCH, Signs._PID]
    os.close(descriptor)


class LostGroup:
    """A control group whose limit is taken away again and again."""

    path = Path("/sys/fs/cgroup/run-zcache")

    def __init__(self) -> None:
        self.looks = self.restored = 0
        self.failure: OSError | None = None

    def holds(self) -> bool:
        self.looks += 1
        return False

    def put_back(self) -> None:
        if self.failure:
            raise self.failure
        self.restored += 1


def test_the_limit_of_its_group_is_put_back(looked: Looked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a second, and not at each turn; and a group that never had one is not looked at."""
    group = LostGroup()
    monkeypatch.setattr(surroundings, "GROUP_SECONDS", 1e6)
    looked.keeper._surroundings.group = group  # type: ignore[assignment]
    looked.keeper._surroundings.next_group_seconds = 0.0
    looked.turns(5)
    assert (group.looks, group.restored) == (1, 1)
    assert looked.said[-1].endswith("put back") and "memory.swap.max=0" in looked.said[-1]
    group.failure = OSError(16, "Device or resource busy")
    for _ in range(3):
        looked.keeper._surroundings.next_group_seconds = 0.0
        looked.turns(1)
    lines = [line for line in looked.said if "cannot be put back: Device or resource busy" in line]
    assert len(lines) == 1 and group.looks == 4
    assert looked.replaces_a_server_that_dies()


def test_what_others_change_is_put_back_while_the_kernel_swaps_to_a_server(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, asked = looked.keeper, []

    def put_back(pids: list[int]) -> list[str]:
        asked.append(pids)
        return ["it was changed: put back"]

    monkeypatch.setattr(keeper._surroundings.watched, "put_back", put_back)
    looked.turns(2)
    assert asked == []  # there is no swap
    monkeypatch.setattr(keeper._device, "is_swapping", lambda: True)
    looked.turns(1)
    assert asked == [[looked.first.pid, looked.standby.pid]]
    looked.turns(2)
    assert len(asked) == 1  # once a second
    keeper._surroundings.next_watch_seconds = 0
    monkeypatch.setattr(keeper.succession, "is_served", lambda: False)
    looked.turns(1)
    assert len(asked) == 1  # not while nobody serves
    monkeypatch.undo()
    assert looked.said.count("it was changed: put back") == 1
