"""The order of steps up and down, with a machine that only remembers, and fails where it is told
to."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from zcache.errors import StillSwappingError, SwapError
from zcache.keeper.state import Backing, StateFolder, SwapState
from zcache.linux.proc_swaps import ProcSwaps
from zcache.linux.process import ProcessIdentity
from zcache.swap import area, buildup, down, interruption, nbd_device, up
from zcache.swap.buildup import Buildup, Options
from zcache.swap.down import take_down
from zcache.swap.handshake import Export
from zcache.swap.interruption import Interrupted, Interruption
from zcache.swap.nbd_device import NbdDevice
from zcache.swap.survivors import Survivors
from zcache.swap.teardown import Teardown, is_live
from zcache.swap.up import bring_up

SERVER = ProcessIdentity(7, 22)
DEVICE = "/dev/nbd0"
ATTACHED_BY_PID = 99
STEPS = [
    "load_driver",
    "start_server",
    "wait_for_server",
    "attach",
    "arm_keeper",
    "warm_up",
    "make_swap",
    "hold_sysctls",
    "guard_sleep",
    "swap_on",
]


class FakeMachine:
    """Both halves of the machine, and what is true of it."""

    def __init__(self, failing: str = "", error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.failing, self.error = failing, error or SwapError("no such luck")
        self.running = self.attached = self.swapping = self.sysctls_held = self.sleep_guarded = False
        self.has_orphan = False  # a server without a keeper
        self.connected = True
        self.backing: Backing | None = None

    def _do(self, step: str) -> None:
        self.calls.append(step)
        if step == self.failing:
            raise self.error

    def _is_ours_on(self) -> bool:
        return self.swapping and self.attached

    def load_driver(self) -> None:
        self._do("load_driver")

    def start_server(self, announce: Callable[[ProcessIdentity, Backing | None], None]) -> None:
        announce(SERVER, self.backing)
        self._do("start_server")
        self.running = True

    def wait_for_server(self) -> None:
        self._do("wait_for_server")

    def attach(self, announce: Callable[[int], None]) -> str:
        announce(ATTACHED_BY_PID)
        self._do("attach")
        self.attached = True
        return DEVICE

    def arm_keeper(self, _device: str) -> None:
        self._do("arm_keeper")

    def warm_up(self, _device: str) -> None:
        self._do("warm_up")

    def make_swap(self, _device: str) -> None:
        self._do("make_swap")

    def hold_sysctls(self) -> None:
        self._do("hold_sysctls")
        self.sysctls_held = True

    def put_back_sysctls(self, _folder: object = None, may_be_lent: bool = False) -> None:
        self.may_be_lent = may_be_lent
        self.calls.append("put_back_sysctls")
        assert not self._is_ours_on()
        self.sysctls_held = False

    def guard_sleep(self) -> None:
        self._do("guard_sleep")
        assert self.sysctls_held and not self.swapping
        self.sleep_guarded = True

    def unguard_sleep(self) -> None:
        self.calls.append("unguard_sleep")
        assert not self._is_ours_on() and not self.sysctls_held
        self.sleep_guarded = False

    def thaw(self, _folder: StateFolder) -> None:
        self.calls.append("thaw")
        assert not self._is_ours_on()  # the record may be swapped out, and nobody serve it

    def swap_on(self, _device: str) -> None:
        self._do("swap_on")
        self.swapping = True

    def is_swapping(self, device: str) -> bool:
        return self.swapping and device == DEVICE

    def is_running(self, _server: ProcessIdentity) -> bool:
        return self.running

    def attached_by_pid(self, _device: str) -> int | None:
        return ATTACHED_BY_PID if self.attached else None

    def device_of(self, attached_by_pid: int) -> str | None:
        return DEVICE if self.attached and attached_by_pid == ATTACHED_BY_PID else None

    def server_of(self, _keeper: ProcessIdentity, _folder: StateFolder) -> ProcessIdentity | None:
        return SERVER if self.has_orphan else None

    def is_connected(self, _server: ProcessIdentity) -> bool:
        return self.connected

    def reconnect(self, _keeper: ProcessIdentity, _folder: StateFolder) -> None:
        self._do("reconnect")
        self.connected = True

    def fail_requests(self, _folder: StateFolder) -> None:
        self._do("fail_requests")

    def swap_off(self, _device: str, look: Callable[[], None] = lambda: None) -> None:
        look()
        self._do("swap_off")
        self.swapping = False

    def detach(self, _device: str) -> None:
        assert not self.swapping
        self._do("detach")
        self.attached = False

    def stop_server(self, _keeper: ProcessIdentity = SERVER, _folder: StateFolder | None = None) -> str:
        assert not self._is_ours_on()
        assert not self.attached
        self._do("stop_server")
        self.running = False
        return "ended"

    def remove_backing(self, below: Backing) -> str:
        assert not (self.swapping or self.attached or self.running)
        self.calls.append(f"remove {below.path}")
        return "removed"

    def bring_up(self, folder: StateFolder) -> SwapState:
        return bring_up(folder, cast(Buildup, self))

    def take_down(self, state: SwapState, folder: StateFolder) -> None:
        take_down(state, folder, cast(Teardown, self), report=lambda _line: None)

    def is_live(self, state: SwapState, folder: StateFolder) -> bool:
        return is_live(state, folder, cast(Teardown, self))


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "zcache")
    folder.create()
    return folder


def test_up_then_down(folder: StateFolder) -> None:
    machine = FakeMachine()
    state = machine.bring_up(folder)
    assert machine.calls == list(STEPS)
    expected = SwapState(SERVER, DEVICE, ATTACHED_BY_PID)
    assert folder.load() == state == expected
    assert machine.sysctls_held and machine.sleep_guarded
    machine.calls.clear()
    machine.take_down(state, folder)
    assert machine.calls == DOWN_STEPS
    assert not folder.path.exists() and not machine.sysctls_held and not machine.sleep_guarded


@pytest.mark.parametrize("error", [SwapError("no such luck"), Interrupted(signal.SIGINT)])
@pytest.mark.parametrize("failing", STEPS)
def test_each_failing_step_is_undone(folder: StateFolder, failing: str, error: BaseException) -> None:
    machine = FakeMachine(failing, error)
    with pytest.raises(type(error)):
        machine.bring_up(folder)
    done = STEPS[: STEPS.index(failing)]
    undos = [("attach", "detach"), ("start_server", "stop_server")]
    undone = ["put_back_sysctls", "unguard_sleep"] * (failing in ("hold_sysctls", "guard_sleep", "swap_on"))
    undone += [undo for do, undo in undos if do in done]
    assert machine.calls == [*done, failing, *undone]
    assert not (machine.running or machine.attached or folder.path.exists()) and not machine.sysctls_held


@pytest.mark.parametrize(
    "step", ["start_server", "attach", "arm_keeper", "warm_up", "hold_sysctls", "guard_sleep", "swap_on"]
)
def test_a_signal_that_falls_after_a_step_finds_its_undo(folder: StateFolder, step: str) -> None:
    original = getattr(FakeMachine, step)

    def act(machine: FakeMachine, *arguments: object) -> object:
        result = original(machine, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    machine = type("Signalled", (FakeMachine,), {step: act})()
    with Interruption() as interruption, pytest.raises(Interrupted):
        bring_up(folder, cast(Buildup, machine), interruption.held)
    assert not (machine.running or machine.attached or machine.swapping)
    assert not (machine.sysctls_held or machine.sleep_guarded or folder.path.exists())


@pytest.mark.parametrize("killed_in", STEPS[1:])
def test_what_a_killed_swap_up_left_is_found(folder: StateFolder, killed_in: str) -> None:
    """SIGKILL, right after the step was done and before anything could be said about it: no undo
    runs."""
    machine = FakeMachine()
    original = getattr(machine, killed_in)

    class Killed(BaseException):
        pass

    def act(*arguments: object) -> None:
        original(*arguments)
        raise Killed

    setattr(machine, killed_in, act)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ExitStack, "close", lambda _self: None)
        machine.bring_up(folder)
    state = folder.load()
    assert state is not None and machine.is_live(state, folder)
    machine.take_down(state, folder)
    assert not (machine.running or machine.attached or machine.swapping)
    assert not (machine.sysctls_held or machine.sleep_guarded or folder.path.exists())


def test_a_device_that_stays_attached_keeps_its_server(folder: StateFolder) -> None:
    class Stuck(FakeMachine):
        def detach(self, device: str) -> None:
            if "stop waiting" not in self.calls:
                raise SwapError("still attached")
            super().detach(device)

    machine = Stuck("make_swap")
    with pytest.raises(SwapError, match=r"still attached.*run swap-down"):
        machine.bring_up(folder)
    state = folder.load()
    assert state is not None and machine.running
    machine.calls.append("stop waiting")
    machine.take_down(state, folder)
    assert not (machine.running or machine.attached or folder.path.exists())


class WrongPriority(FakeMachine):
    def swap_on(self, device: str) -> None:
        super().swap_on(device)
        raise SwapError("wrong priority")


def test_a_swap_that_is_on_and_wrong_is_turned_off_first(folder: StateFolder) -> None:
    machine = WrongPriority()
    with pytest.raises(SwapError, match="wrong priority"):
        machine.bring_up(folder)
    assert machine.calls[-5:] == ["swap_off", "put_back_sysctls", "unguard_sleep", "detach", "stop_server"]
    assert not folder.path.exists()


@pytest.mark.parametrize("error", [StillSwappingError("no memory"), OSError("fork found none"), KeyboardInterrupt()])
def test_a_swap_that_stays_on_keeps_its_server_whatever_failed(folder: StateFolder, error: BaseException) -> None:
    machine = WrongPriority("swap_off", error)
    with pytest.raises(type(error)):
        machine.bring_up(folder)
    assert machine.swapping
    assert machine.running
    state = folder.load()
    assert state is not None
    machine.failing = ""
    machine.take_down(state, folder)
    assert not folder.path.exists()


def up_machine(folder: StateFolder, failing: str) -> tuple[FakeMachine, SwapState]:
    machine = FakeMachine(failing)
    return machine, machine.bring_up(folder)


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


DOWN_STEPS = ["swap_off", "thaw", "detach", "stop_server", "put_back_sysctls", "unguard_sleep"]


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


def test_a_held_signal_waits_and_only_the_first_counts() -> None:
    with Interruption() as interruption:
        with pytest.raises(Interrupted), interruption.held():
            os.kill(os.getpid(), signal.SIGTERM)
            reached = True
        assert reached
        os.kill(os.getpid(), signal.SIGINT)


def test_a_free_signal_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "is_ignored", lambda _signum: False)  # as it is where tests run in the background
    with Interruption(), pytest.raises(Interrupted) as caught:
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.exit_status == 130


@pytest.mark.parametrize(
    ("export", "words"),
    [
        (Export(1 << 30, 0b11), "read-only"),
        (Export(4096, 1), "too small"),
        (Export(1 << 30, 1), "--discard"),
    ],
)
def test_an_export_that_will_not_do(export: Export, words: str) -> None:
    with pytest.raises(SwapError, match=words):
        export.check(discard=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(parameters=("size",)), "key=value"),
        (Options(priority=-1), "--priority"),
        (Options(timeout_seconds=0), "--timeout-seconds"),
        (Options(dead_connection_seconds=29), "--dead-server-seconds"),
        (Options(start_seconds=float("nan")), "--start-seconds"),
        (Options(start_seconds=0), "--start-seconds"),
    ],
)
def test_options_are_checked_before_anything_is_done(options: Options, words: str) -> None:
    with pytest.raises(SwapError, match=words):
        up.check(options)


def test_down_of_a_folder_that_is_none_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert down.main([str(tmp_path / "mistyped")]) == 1
    assert "not the state folder" in capsys.readouterr().err


def test_parse_allows_options_between_parameters() -> None:
    options = up.parse(["size=1G", "--priority", "5", "codec=lz4", "--discard"])
    assert options.parameters == ("size=1G", "codec=lz4")
    assert options.priority == 5
    assert options.discard


def test_not_root_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert up.main(["--state-folder", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err == "swap-up: error: only root can do this\n"
    assert not (tmp_path / "absent").exists()


def test_a_device_about_which_nothing_can_be_learnt_is_not_taken_for_one_that_is_free(tmp_path: Path) -> None:
    device = NbdDevice("/dev/nbd0", tmp_path)
    assert device.attached_by_pid() is None
    (tmp_path / "nbd0" / "pid").mkdir(parents=True)
    with pytest.raises(SwapError, match="cannot be read"):
        device.attached_by_pid()


DEVICES = "Character devices:\n  1 mem\n 42 nbd\n\nBlock devices:\n  7 loop\n{}254 virtblk\n"


def test_a_driver_that_is_built_in_needs_no_modprobe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which fails, for there is no folder of modules."""
    devices = tmp_path / "devices"
    tried: list[str] = []

    def modprobe(command: Sequence[str], brings: str = "") -> None:
        tried.append(" ".join(command))
        devices.write_text(DEVICES.format(brings))
        raise SwapError("modprobe failed: FATAL: Module nbd not found in directory /lib/modules/6.1.0")

    monkeypatch.setattr(nbd_device.has_driver, "__defaults__", (devices,))
    monkeypatch.setattr(area, "run", modprobe)
    machine = Buildup(Options(), StateFolder(tmp_path), lambda _line: None)
    devices.write_text(DEVICES.format(" 43 nbd\n"))
    machine.load_driver()
    assert tried == []
    devices.unlink()
    with pytest.raises(SwapError, match=r"no nbd driver, boot one that has \(modprobe failed: .* not found"):
        machine.load_driver()
    assert tried == ["modprobe nbd"]
    monkeypatch.setattr(area, "run", lambda command: modprobe(command, " 43 nbd\n"))  # another loads it just then
    devices.write_text(DEVICES.format(""))
    machine.load_driver()


def test_how_soon_a_request_is_sent_again(tmp_path: Path) -> None:
    timeout = tmp_path / "nbd3" / "queue" / "io_timeout"
    NbdDevice("/dev/nbd3", tmp_path).resend_after(5)  # a sysfs that has no such file
    timeout.parent.mkdir(parents=True)
    timeout.write_text("30000")
    NbdDevice("/dev/nbd3", tmp_path).resend_after(0)
    assert timeout.read_text() == "30000"
    NbdDevice("/dev/nbd3", tmp_path).resend_after(5)
    assert timeout.read_text() == "5000"


def test_a_device_that_sysfs_shows_under_another_pid_is_given_back(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a PID namespace: swap-down would take it for somebody else's, and end the server under the
    swap."""

    def apart(_work: object, announce: Callable[[int], None]) -> str:
        announce(42)
        return DEVICE

    detached: list[str] = []
    machine = Buildup(Options(), folder, lambda _line: None)
    monkeypatch.setattr(buildup, "apart", apart)
    monkeypatch.setattr(NbdDevice, "attached_by_pid", lambda _self: 4242)
    monkeypatch.setattr(machine, "detach", detached.append)
    with pytest.raises(SwapError, match="PID namespace"):
        machine.attach(lambda _pid: None)
    assert detached == [DEVICE]
    monkeypatch.setattr(NbdDevice, "attached_by_pid", lambda _self: 42)
    assert machine.attach(lambda _pid: None) == DEVICE


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


def test_tools_are_found_without_sbin_on_path() -> None:
    assert area.with_sbin({"PATH": "/bin:/sbin", "LANG": "C"}) == {"PATH": "/bin:/sbin:/usr/sbin", "LANG": "C"}
    assert area.with_sbin({})["PATH"].endswith(":/usr/sbin:/sbin")
