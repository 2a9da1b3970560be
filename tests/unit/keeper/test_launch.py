"""Starting a server and hearing what it says, with small shell scripts for servers."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zcache.errors import SwapError
from zcache.keeper import launch as keeper_process
from zcache.keeper.launch import KeeperProcess
from zcache.keeper.state import StateFolder
from zcache.linux import process
from zcache.swap import up

GOOD = 'echo warming up; touch "$SOCKET"; echo $$ > "$PIDFILE"; exec sleep 60'


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)


@pytest.fixture
def started(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[KeeperProcess]]:
    monkeypatch.setenv("SOCKET", str(folder.socket))
    pidfile = folder.path / "pid"
    monkeypatch.setenv("PIDFILE", str(pidfile))
    # The real question goes to a control socket, which these scripts have not.
    monkeypatch.setattr(keeper_process, "is_answering", lambda _control: pidfile.exists() and pidfile.read_text())
    servers: list[KeeperProcess] = []
    yield servers
    for each in servers:
        process.stop(each.identity, term_seconds=5)


def start(started: list[KeeperProcess], folder: StateFolder, script: str) -> KeeperProcess:
    started.append(KeeperProcess(["sh", "-c", script], folder.log, lambda _identity: None))
    return started[-1]


def test_ready_and_heard_from_then_on(folder: StateFolder, started: list[KeeperProcess]) -> None:
    talker = GOOD.replace("exec sleep 60", "read -r _ < fifo; echo later words; exec sleep 60")
    os.mkfifo(folder.path / "fifo")
    each = start(started, folder, talker.replace("fifo", str(folder.path / "fifo")))
    each.wait_until_ready(folder, timeout_seconds=10)
    assert each.log() == "warming up\n"
    assert folder.log.stat().st_mode & 0o777 == 0o600
    (folder.path / "fifo").write_text("go on\n")
    while "later words" not in each.log():
        assert process.is_running(each.identity)
    assert os.getsid(each.identity.pid) == each.identity.pid


def test_one_that_ends_at_its_start_says_why(folder: StateFolder, started: list[KeeperProcess]) -> None:
    each = start(started, folder, "echo nbdkit: debug: hello; echo nbdkit: error: size= is missing >&2; exit 1")
    with pytest.raises(SwapError, match="size= is missing") as caught:
        each.wait_until_ready(folder, timeout_seconds=10)
    assert "hello" not in str(caught.value)


def test_who_allows_more_for_the_start_allows_more_for_a_step(
    folder: StateFolder, started: list[KeeperProcess]
) -> None:
    """A step that showed no progress for a minute ended every wait, whatever --start-seconds
    was."""
    script = ["sh", "-c", "echo may take $ZCACHE_STEP_SECONDS; exit 1"]
    for start_seconds, step_seconds in ((600.0, 300.0), (30.0, 60.0)):
        started.append(each := KeeperProcess(script, folder.log, lambda _identity: None, start_seconds))
        with pytest.raises(SwapError, match=f"may take {step_seconds}$"):
            each.wait_until_ready(folder, timeout_seconds=10)


def test_one_that_ends_in_silence(folder: StateFolder, started: list[KeeperProcess]) -> None:
    with pytest.raises(SwapError, match="it said:\n  nothing"):
        start(started, folder, "exit 3").wait_until_ready(folder, timeout_seconds=10)


def test_one_that_is_never_ready(folder: StateFolder, started: list[KeeperProcess]) -> None:
    with pytest.raises(SwapError, match="not ready after 0 s"):
        start(started, folder, "exec sleep 60").wait_until_ready(folder, timeout_seconds=0.2)


SAY_STEP = 'echo "step $$ {} the server: locking memory" >/proc/self/fd/$ZCACHE_STEPS; exec sleep 60'


def test_the_step_is_named_when_patience_is_at_its_end(folder: StateFolder, started: list[KeeperProcess]) -> None:
    each = start(started, folder, SAY_STEP.format(100))
    while each.step() == "starting the program":
        assert process.is_running(each.identity)
    with pytest.raises(SwapError, match="at this step: the server: locking memory"):
        each.wait_until_ready(folder, timeout_seconds=0.2)


def test_progress_moves_the_deadline_and_is_told(
    folder: StateFolder, started: list[KeeperProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backing that had to be written to be allocated was given up after 120 s, whatever it
    said."""
    monkeypatch.setattr(keeper_process, "TELL_SECONDS", 0.0)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    real_sleep = time.sleep

    def sleep(_seconds: float) -> None:
        real_sleep(0.01)
        now[0] += 0.001  # of its deadline: a machine that is busy is no matter

    monkeypatch.setattr(time, "sleep", sleep)
    script = (
        "for i in 1 2 3; do"
        ' echo "step $$ 100.0 allocating, ${i}0%" >/proc/self/fd/$ZCACHE_STEPS; read -r _ <fifo$i; done; ' + GOOD
    )
    for number in (1, 2, 3):  # one each: the reader of the next could meet the last one's writer, and its end
        os.mkfifo(folder.path / f"fifo{number}")
    told: list[str] = []

    def tell(line: str) -> None:
        if "allocating" in line:
            told.append(line)
            (folder.path / f"fifo{len(told)}").write_text("go on\n")
            now[0] += 9

    each = start(started, folder, f"cd {folder.path}; {script}")
    each.wait_until_ready(folder, timeout_seconds=15, tell=tell)
    assert told == [f"starting: allocating, {percent}%" for percent in (10, 20, 30)]


def test_a_step_that_stands_still_is_not_waited_for_to_the_end(
    folder: StateFolder, started: list[KeeperProcess]
) -> None:
    with pytest.raises(SwapError, match="stands still at this step for 1 s: the server: locking memory"):
        start(started, folder, SAY_STEP.format(1)).wait_until_ready(folder, timeout_seconds=60)


def test_no_such_program(folder: StateFolder, started: list[KeeperProcess], tmp_path: Path) -> None:
    started.append(KeeperProcess([str(tmp_path / "absent")], folder.log, lambda _identity: None))
    with pytest.raises(SwapError, match="/absent: not found"):
        started[-1].wait_until_ready(folder, timeout_seconds=10)


def test_it_does_not_end_with_its_starter(folder: StateFolder, started: list[KeeperProcess]) -> None:
    """nbdkit asks for SIGTERM at its parent's death, so its parent must not be the one that started
    it."""
    each = start(started, folder, GOOD)
    each.wait_until_ready(folder, timeout_seconds=10)
    stat = Path(f"/proc/{each.identity.pid}/stat").read_text()
    parent_pid = int(stat.rpartition(")")[2].split()[1])
    assert parent_pid not in (os.getpid(), each.identity.pid)


def test_error_lines() -> None:
    assert keeper_process.error_lines("") == []
    assert keeper_process.error_lines("a\n\nb  \n") == ["a", "b"]
    assert keeper_process.error_lines("a\nnbdkit: error: b\nValueError: c\n") == ["nbdkit: error: b", "ValueError: c"]
    assert len(keeper_process.error_lines("error\n" * 99)) == 8


def test_command(folder: StateFolder) -> None:
    command = keeper_process.command(folder, ["size=1G"])
    assert command[1:] == ["-I", "-m", "zcache.keeper", str(folder.path), "size=1G"]


@pytest.mark.parametrize("parameter", ["size", "=1G", "-U=x", "control=/x"])
def test_wrong_parameters(parameter: str) -> None:
    with pytest.raises(SwapError, match=parameter.split("=", maxsplit=1)[0] or "key=value"):
        keeper_process.check_parameters(["size=1G", parameter])


def test_the_servers_own_parser_looks_at_parameters_in_a_process_that_ends() -> None:
    keeper_process.try_parameters(["size=64M", "budget=64M"])
    for words, said in (
        (["size=64M", "budget=32M"], "size=64M: larger than budget=32M"),
        (["size=64M", "budget=64M", "sise=1"], "sise=1: unknown parameter"),
        (["size=64M", "budget=64M", "backing=\udcff"], "cannot be printed"),
        ([], "size=: missing"),
    ):
        with pytest.raises(SwapError) as refusal:
            keeper_process.try_parameters(words)
        assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_swap_up_refuses_a_wrong_parameter_before_it_does_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(up, "bring_up", lambda *_: pytest.fail("it has begun"))
    assert up.main(["size=64M", "budget=32M", "--state-folder", str(tmp_path / "state")]) == 1
    assert capsys.readouterr().err.startswith("swap-up: error: size=64M: larger than budget=32M")
    assert not (tmp_path / "state").exists()
