"""The order of steps up, and their undoing; with a machine that only remembers."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from tests.support.swap_machine import ATTACHED_BY_PID, DEVICE, DOWN_STEPS, SERVER, STEPS, FakeMachine
from zcache.errors import StillSwappingError, SwapError
from zcache.keeper.state import StateFolder, SwapState
from zcache.swap import area, buildup, up
from zcache.swap.buildup import Buildup, Options
from zcache.swap.interruption import Interrupted, Interruption
from zcache.swap.nbd_device import NbdDevice
from zcache.swap.up import bring_up


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
    later = STEPS[STEPS.index("hold_sysctls") :]
    undone = ["release_network_programs"] * (failing in later[1:])
    undone += ["put_back_sysctls", "unguard_sleep"] * (failing in later)
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
    assert machine.calls[-6:] == [
        "swap_off",
        "release_network_programs",
        "put_back_sysctls",
        "unguard_sleep",
        "detach",
        "stop_server",
    ]
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


def test_parse_allows_options_between_parameters() -> None:
    options = up.parse(["size=1G", "--priority", "5", "codec=lz4", "--discard"])
    assert options.parameters == ("size=1G", "codec=lz4")
    assert options.priority == 5
    assert options.discard


def test_engines_are_passed_on_each_and_the_files_that_they_name_are_found_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    words = [
        "remote=redis://alice:p%3Fw?@one:6379",  # what is wrong is left for the server to say
        "remote=rediss://two?ca=ca.pem&cert=%2Fetc%2Fc.pem&key=/etc/k.pem&cluster=yes",
        "remote=unix:///run/engine.sock?password_file=word",
    ]
    here = f"{tmp_path}/a%20b"
    assert up.parse(["size=1G", *words]).parameters == (
        "size=1G",
        words[0],
        f"remote=rediss://two?ca={here}/ca.pem&cert=%2Fetc%2Fc.pem&key=/etc/k.pem&cluster=yes",
        f"remote=unix:///run/engine.sock?password_file={here}/word",
    )
    assert up.parse(["--network-in-ram"]).network_in_ram and not up.parse([]).network_in_ram


def test_not_root_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert up.main(["--state-folder", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err == "swap-up: error: only root can do this\n"
    assert not (tmp_path / "absent").exists()


def test_tools_are_found_without_sbin_on_path() -> None:
    assert area.with_sbin({"PATH": "/bin:/sbin", "LANG": "C"}) == {"PATH": "/bin:/sbin:/usr/sbin", "LANG": "C"}
    assert area.with_sbin({})["PATH"].endswith(":/usr/sbin:/sbin")


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
