"""Every command, with standard output and error closed, full, or a pipe that nobody reads: its documented exit status,
and never a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

#: A program that prints, and asks which descriptor its next file gets.
PROGRAM = """
import os, sys
from zcache import standard_streams
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
    "streams, status, said",
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


@pytest.mark.parametrize("streams", [">&-", ">/dev/full", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>&1"])
@pytest.mark.parametrize(
    "module, words, status",
    [
        ("zcache.cli", ["status", "--control", "/nowhere/control"], 2),
        ("zcache.cli", ["check", "--control", "/nowhere/control"], 2),
        ("zcache.swap.up", ["nonsense"], 1),
        ("zcache.swap.down", ["/nowhere/zcache"], 1),
        ("zcache.swap.down", ["--wrong"], 2),
        ("zcache.swap.upgrade", ["/nowhere/zcache"], 1),
        ("zcache.swap.sleep", ["nonsense"], 2),
        ("zcache.testvm", ["--memory", "lots", "--", "true"], 2),
        ("zcache.testvm.run", ["--seconds", "none"], 2),
        ("zcache.testvm.pressure", ["--seconds", "none"], 2),
        ("zcache.bench", ["nonsense"], 2),
    ],
)
def test_what_each_command_refuses(module: str, words: list[str], status: int, streams: str) -> None:
    done = run([sys.executable, "-P", "-m", module, *words], streams)
    assert done.stdout.splitlines()[-1] == str(status)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "module, status", [("zcache.cli", 2), ("zcache.testvm", 125), ("zcache.testvm.run", 125), ("zcache.bench", 125)]
)
def test_help_that_cannot_be_printed(module: str, status: int) -> None:
    done = run([sys.executable, "-P", "-m", module, "--help"], ">/dev/full")
    assert done.stdout == f"{status}\n"
    assert done.stderr.endswith(f": cannot write to standard output: {NO_SPACE}\n") and done.stderr.count("\n") == 1


def test_the_scripts_pass_it_on() -> None:
    """They are shell."""
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    done = run([str(scripts / "swap-down"), "/nowhere/zcache"], "<&- >&- 2>&-")
    assert (done.stdout, done.stderr) == ("1\n", "")
