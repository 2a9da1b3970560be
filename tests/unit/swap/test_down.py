"""The order of steps down: nothing before what was before it is certainly gone."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.swap_machine import ATTACHED_BY_PID, DEVICE, DOWN_STEPS, SERVER, STEPS, FakeMachine, up_machine
from zcache.errors import StillSwappingError, SwapError
from zcache.keeper.state import StateFolder, SwapState
from zcache.linux.proc_swaps import ProcSwaps
from zcache.swap import down
from zcache.swap.survivors import Survivors


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "zcache")
    folder.create()
    return folder


@pytest.mark.parametrize("failing", ["swap_off", "detach"])
def test_down_never_ends_the_server_before_the_rest_is_gone(folder: StateFolder, failing: str) -> None:
    machine, state = up_machine(folder, failing)
    with pytest.raises(SwapError):
        machine.take_down(state, folder)
    assert machine.running
    assert folder.load() == state
    machine.failing = ""
    machine.take_down(state, folder)
    assert not folder.path.exists()


def test_down_does_not_believe_swapoff_but_the_kernel(folder: StateFolder) -> None:
    class Liar(FakeMachine):
        def swap_off(self, _device: str, look: Callable[[], None] = lambda: None) -> None:
            pass

    machine = Liar()
    state = machine.bring_up(folder)
    with pytest.raises(StillSwappingError):
        machine.take_down(state, folder)
    assert machine.running


@pytest.mark.parametrize("has_orphan", [True, False])
def test_down_gives_up_requests_only_if_nobody_will_ever_answer_them(folder: StateFolder, has_orphan: bool) -> None:
    machine, state = up_machine(folder, "")
    machine.running, machine.has_orphan = False, has_orphan
    machine.take_down(state, folder)
    assert machine.calls[len(STEPS) :] == (DOWN_STEPS if has_orphan else ["fail_requests", *DOWN_STEPS])
    assert machine.may_be_lent


def test_down_connects_a_server_whose_keeper_died_before_it_had(folder: StateFolder) -> None:
    """With all pages; the kernel would have failed their reads in the end, and swapoff taken that
    for success."""
    machine, state = up_machine(folder, "")
    machine.running, machine.has_orphan, machine.connected = False, True, False
    machine.take_down(state, folder)
    assert machine.calls[len(STEPS) :] == ["reconnect", *DOWN_STEPS]


def test_down_sees_both_die_while_the_swap_comes_off(folder: StateFolder) -> None:
    """Swapoff would wait for ever for what was under way."""

    class Dying(FakeMachine):
        def swap_off(self, device: str, look: Callable[[], None] = lambda: None) -> None:
            look()
            assert "fail_requests" not in self.calls
            self.running = False
            look()
            look()
            super().swap_off(device, look)

    machine = Dying()
    state = machine.bring_up(folder)
    machine.take_down(state, folder)
    assert machine.calls[len(STEPS) :] == ["fail_requests", *DOWN_STEPS]


@pytest.mark.parametrize("failing", ["reconnect", "fail_requests"])
def test_what_fails_at_one_look_at_the_survivors_is_tried_at_the_next(folder: StateFolder, failing: str) -> None:
    machine, state = up_machine(folder, failing)
    machine.running, machine.has_orphan, machine.connected = False, failing == "reconnect", False
    said: list[str] = []
    survivors = Survivors(state, DEVICE, folder, machine, said.append)
    survivors.look()
    survivors.look()
    machine.failing = ""
    survivors.look()
    survivors.look()
    assert machine.calls[len(STEPS) :] == [failing] * 3
    assert len(said) == 3 and "is gone" in said[0] and said[2] == "warning: no such luck"


def test_down_leaves_a_device_that_was_attached_by_another_since_its_requests_failed(folder: StateFolder) -> None:
    """It is free for anybody as soon as swapoff has closed it."""
    machine, state = up_machine(folder, "")
    machine.running = False

    class Taken(FakeMachine):
        def attached_by_pid(self, _device: str) -> int | None:
            return ATTACHED_BY_PID if self.attached else ATTACHED_BY_PID + 1

        def swap_off(self, device: str, look: Callable[[], None] = lambda: None) -> None:
            super().swap_off(device, look)
            self.attached = False

    taken = Taken()
    taken.attached = taken.swapping = True
    taken.take_down(state, folder)
    assert taken.calls == ["fail_requests", "swap_off", "thaw", *DOWN_STEPS[3:]]


def test_a_second_swap_down_sees_what_a_swapoff_without_its_parent_cannot(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one was killed; its child holds the lock, and waits for a server that has died."""
    machine, _ = up_machine(folder, "")
    machine.running = False
    released: list[object] = []

    @contextlib.contextmanager
    def locked(is_worth_waiting: Callable[[], bool]) -> Iterator[None]:
        assert is_worth_waiting() and is_worth_waiting() and machine.calls[-1] == "fail_requests"
        released.append(True)
        yield

    monkeypatch.setattr(folder, "locked", locked)
    monkeypatch.setattr(machine, "close", lambda: None, raising=False)
    monkeypatch.setattr(down, "Teardown", lambda *_: machine)
    down.run(folder, lambda _line: None, interval_seconds=1)
    assert released and machine.calls[len(STEPS) :] == ["fail_requests", "fail_requests", *DOWN_STEPS]


def test_down_leaves_a_device_that_someone_else_attached(folder: StateFolder) -> None:
    machine, state = up_machine(folder, "")
    machine.swapping = machine.attached = False

    class ReusedDevice(FakeMachine):
        def attached_by_pid(self, _device: str) -> int | None:
            return ATTACHED_BY_PID + 1

    later = ReusedDevice()
    assert not later.is_live(state, folder)
    later.swapping = True  # theirs, of the same name
    later.take_down(state, folder)
    assert later.swapping and later.calls == ["thaw", *DOWN_STEPS[3:]]


def test_what_counts_as_up(folder: StateFolder) -> None:
    machine, state = up_machine(folder, "")
    assert machine.is_live(state, folder)
    machine.running = machine.swapping = False
    assert machine.is_live(state, folder)
    machine.attached = False
    assert not machine.is_live(state, folder)
    machine.has_orphan = True  # it holds its budget, and the backing
    assert machine.is_live(state, folder)
    machine.has_orphan = False
    assert not machine.is_live(SwapState(SERVER), folder)


def test_down_of_a_folder_that_is_none_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert down.main([str(tmp_path / "mistyped")]) == 1
    assert "not the state folder" in capsys.readouterr().err


def test_down_tells_of_a_swap_whose_folder_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swaps = tmp_path / "swaps"
    swaps.write_text(
        "Filename\tType\tSize\tUsed\tPriority\n/dev/nbd1 partition 1024 0 100\n/dev/sda2 partition 1024 0 -2\n"
    )
    monkeypatch.setattr(down, "ProcSwaps", lambda: ProcSwaps(swaps))
    said: list[str] = []
    down.run(StateFolder(tmp_path / "absent"), said.append, interval_seconds=1)
    assert said[0] == "nothing is up" and len(said) == 2 and "/dev/nbd1" in said[1]


def test_down_leaves_a_folder_that_is_nobodys(tmp_path: Path) -> None:
    """A mistyped mount point, say; but what a swap-up left that was killed at its start goes."""
    empty = tmp_path / "empty"
    empty.mkdir()
    down.run(StateFolder(empty), lambda _line: None, interval_seconds=1)
    assert empty.exists()
    StateFolder(empty).log.touch()
    down.run(StateFolder(empty), lambda _line: None, interval_seconds=1)
    assert not empty.exists()
