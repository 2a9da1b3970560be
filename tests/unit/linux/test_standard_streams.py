"""Every command, with standard output and error closed, full, or a pipe that nobody reads: its
documented exit status, and never a traceback."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from zcache.keeper.state import StateFolder
from zcache.linux import standard_streams
from zcache.swap import down, sleep_units, swapoff, up, upgrade
from zcache.swap.interruption import Interrupted

#: A program that prints, and asks which descriptor its next file gets.
PROGRAM = """
import os, sys
from zcache.linux import standard_streams
def main():
    print("x" * 100_000 if sys.argv[1] == "much" else "little")
    print("complaint", file=sys.stderr)
    descriptor = os.open("/dev/null", os.O_RDONLY)
    return 7 if descriptor > 2 else 99
sys.exit(standard_streams.run("program", main, eval(sys.argv[2])))
"""
NO_SPACE = "No space left on device"


def run(command: list[str], streams: str) -> subprocess.CompletedProcess[str]:
    """By a shell, which closes and opens them before the command starts."""
    read_end, broken_pipe = os.pipe()
    os.close(read_end)
    script = f'{{ "$@"; echo "$?" >&9; }} {streams.replace("BROKEN", str(broken_pipe))}'
    shell = ["bash", "-c", f"exec 9>&1; {script}", "bash", *command]
    try:
        return subprocess.run(shell, capture_output=True, text=True, check=False, pass_fds=[broken_pipe])
    finally:
        os.close(broken_pipe)


@pytest.mark.parametrize("amount", ["little", "much"])
@pytest.mark.parametrize(
    ("streams", "status", "said"),
    [
        (">/dev/null", 7, "complaint\n"),
        (">&-", 42, "complaint\nprogram: cannot write to standard output: it is closed\n"),
        (">/dev/full", 42, f"complaint\nprogram: cannot write to standard output: {NO_SPACE}\n"),
        (">&BROKEN", 128 + signal.SIGPIPE, "complaint\n"),
        ("<&- >&- 2>&-", 42, ""),
        (">/dev/null 2>&-", 7, ""),
        (">/dev/null 2>/dev/full", 7, ""),
        (">&- 2>/dev/full", 42, ""),
    ],
)
def test_a_command_that_is_run_for_what_it_prints(amount: str, streams: str, status: int, said: str) -> None:
    done = run([sys.executable, "-c", PROGRAM, amount, "42"], streams)
    # More than the buffer fails in the middle, before the complaint.
    expected = said.removeprefix("complaint\n") if amount == "much" and status != 7 else said
    assert (done.stdout, done.stderr) == (f"{status}\n", expected)


@pytest.mark.parametrize("amount", ["little", "much"])
@pytest.mark.parametrize("streams", [">&-", ">/dev/full", ">&BROKEN", "<&- >&- 2>&-", ">&- 2>/dev/full"])
def test_a_command_that_is_run_for_what_it_does(amount: str, streams: str) -> None:
    done = run([sys.executable, "-c", PROGRAM, amount, "None"], streams)
    assert done.stdout == "7\n" and done.stderr in ("", "complaint\n")


@pytest.mark.parametrize(("streams", "status"), [(">/dev/null", 7), (">&-", 42), ("<&- >&- 2>&-", 42), ("2>&-", 7)])
def test_a_root_without_dev_null(streams: str, status: int) -> None:
    program = PROGRAM.replace("import os, sys", "import os, sys; os.devnull = '/nowhere/null'")
    done = run([sys.executable, "-c", program, "little", "42"], streams)
    assert done.stdout.splitlines()[-1] == str(status) and "Traceback" not in done.stderr


#: `zcache sleep`, but for what it does to the machine.
SLEEP = """
import sys
from zcache.client import command as cli
from zcache.swap import sleep
def command(moment, is_hibernation=False):
    print(f"zcache sleep {moment}: 3 control groups frozen", flush=len(sys.argv) > 3)
    return {"pre": 0, "post": 1}[moment]
sleep.command = command
sys.exit(cli.command())
"""


@pytest.mark.parametrize("streams", [">/dev/null", ">&-", ">/dev/full", ">&BROKEN", "<&- >&- 2>&-"])
def test_zcache_sleep_is_run_for_what_it_does(streams: str) -> None:
    """Or `zcache sleep pre && echo mem > /sys/power/state` would leave everything frozen."""
    for words, status in ((["pre"], 0), (["pre", "--hibernate"], 0), (["post"], 1)):
        done = run([sys.executable, "-c", SLEEP, "sleep", *words], streams)
        assert (done.stdout, done.stderr) == (f"{status}\n", "")


@pytest.mark.parametrize("streams", [">&-", ">/dev/full", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>&1"])
@pytest.mark.parametrize(
    ("module", "words", "status"),
    [
        ("zcache.client.command", ["status", "--control", "/nowhere/control"], 2),
        ("zcache.client.command", ["check", "--control", "/nowhere/control"], 2),
        ("zcache.swap.up", ["nonsense"], 1),
        ("zcache.swap.down", ["/nowhere/zcache"], 1),
        ("zcache.swap.down", ["--wrong"], 2),
        ("zcache.swap.upgrade", ["/nowhere/zcache"], 1),
        ("zcache.swap.sleep", ["nonsense"], 2),
        ("zcache.testvm", ["--memory", "lots", "--", "true"], 2),
        ("zcache.bench.run", ["--seconds", "none"], 2),
        ("zcache.bench.pressure", ["--seconds", "none"], 2),
        ("zcache.bench", ["nonsense"], 2),
    ],
)
def test_what_each_command_refuses(module: str, words: list[str], status: int, streams: str) -> None:
    done = run([sys.executable, "-P", "-m", module, *words], streams)
    assert done.stdout.splitlines()[-1] == str(status)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("module", "status"),
    [("zcache.client.command", 2), ("zcache.testvm", 125), ("zcache.bench.run", 125), ("zcache.bench", 125)],
)
def test_help_that_cannot_be_printed(module: str, status: int) -> None:
    done = run([sys.executable, "-P", "-m", module, "--help"], ">/dev/full")
    assert done.stdout == f"{status}\n"
    assert done.stderr.endswith(f": cannot write to standard output: {NO_SPACE}\n") and done.stderr.count("\n") == 1


def test_the_scripts_pass_it_on() -> None:
    """They are shell."""
    scripts = Path(__file__).resolve().parents[3] / "scripts"
    done = run([str(scripts / "swap-down"), "/nowhere/zcache"], "<&- >&- 2>&-")
    assert (done.stdout, done.stderr) == ("1\n", "")


def full_pipe() -> tuple[int, int]:
    """The ends of one that does not block, as a parent that is Node gives it."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, bytes(65536))
    return read_end, write_end


@pytest.mark.parametrize("amount", ["little", "much"])
def test_a_full_pipe_that_does_not_block_stops_nothing(amount: str) -> None:
    """Of a command that is run for what it does."""
    read_end, write_end = full_pipe()
    try:
        for is_stderr in (False, True):
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, amount, "None"],
                stdout=write_end,
                stderr=write_end if is_stderr else subprocess.PIPE,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (7, None if is_stderr else "complaint\n")
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("amount", ["little", "much"])
def test_a_full_pipe_is_waited_for_by_a_command_that_is_run_for_what_it_prints(amount: str) -> None:
    read_end, write_end = full_pipe()
    command = [sys.executable, "-c", PROGRAM, amount, "42"]
    with subprocess.Popen(command, stdout=write_end, stderr=subprocess.PIPE, text=True) as program:
        os.close(write_end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(1)  # it finds it full, and does not end
        os.set_blocking(read_end, True)
        with os.fdopen(read_end, "rb") as reader:
            printed = reader.read().lstrip(b"\0")
        assert program.stderr and program.stderr.read() == "complaint\n"
    assert program.returncode == 7
    assert printed == (b"x" * 100_000 if amount == "much" else b"little") + b"\n"


class Unprintable:
    """A standard output, when memory has run out, say."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def write(self, _text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("command", [up, down, upgrade])
@pytest.mark.parametrize("error", [BlockingIOError(11, "full"), ValueError("closed"), MemoryError(), RuntimeError()])
def test_no_report_stops_a_command_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: ModuleType, error: Exception
) -> None:
    done: list[str] = []

    def work(*arguments: object, **_: object) -> float:
        for report in filter(callable, arguments[:2]):
            report("half-way")
            done.append("all")
        return 1.0

    (tmp_path / "zcache").mkdir(mode=0o700)
    monkeypatch.setattr(sleep_units, "guard", lambda report: report("half-way"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(StateFolder, "locked", lambda _self: contextlib.nullcontext())
    monkeypatch.setattr(swapoff, "lock_memory", lambda: False)
    if command is down:
        monkeypatch.setattr(down, "run", lambda _folder, report, **_: work(report))
    else:
        monkeypatch.setattr(command, "run" if command is up else "upgrade", work)
    monkeypatch.setattr(sys, "stdout", Unprintable(error))
    monkeypatch.setattr(Unprintable, "isatty", lambda _self: False, raising=False)
    option = ["--state-folder"] if command is up else []
    assert command.main([*option, str(tmp_path / "zcache")]) == 0
    assert done == ["all"]


def test_a_signal_is_no_trouble_with_printing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Unprintable(Interrupted(signal.SIGINT)))
    with pytest.raises(Interrupted):
        up.tell("swap is on")


def test_a_warning_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("swap-up: server: ready", "swap-up: server: WARNING: not safe"):
        standard_streams.say(line)
    assert capsys.readouterr() == ("swap-up: server: ready\n", "swap-up: server: WARNING: not safe\n")


def test_every_line_of_swap_upgrade_says_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def replace(_folder: StateFolder, report: Callable[[str], None] = print) -> float:
        report("replacing server number 1")
        return 1.0

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(upgrade, "upgrade", replace)
    monkeypatch.setattr(sleep_units, "guard", lambda report: report("warning: systemd does not answer"))
    assert upgrade.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.startswith("swap-upgrade: ") for line in lines)
