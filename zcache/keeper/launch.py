"""The keeper process, as who starts it sees it: started from a clean place, waited for, its
server's words kept.

Its output goes to server.log in the state folder, which lies in a tmpfs and can be swapped out: to
the server itself.  That is safe because a server protected against itself
(zcache.hardening.log_pipe) writes it from a thread that nothing waits for, and lets it grow to 1
MiB at most.

It is started as nobody's child.  Debian 12's nbdkit 1.32.5 asks for SIGTERM at its parent's death
(prctl PR_SET_PDEATHSIG) even without --exit-with-parent: a server that is swap-up's own child ends
with swap-up, at the first request after it, with the swap on (seen).  An orphan's parent is init.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zcache.control.ask import ask
from zcache.errors import EnvironmentProblem, SwapError, repeatable
from zcache.keeper.server_process import TRY_PARAMETERS
from zcache.keeper.state import StateFolder
from zcache.linux import process
from zcache.linux.process import ProcessIdentity
from zcache.steps import STEP_SECONDS, StepsWatch

_ERROR_LINE_COUNT = 8

#: A start that takes longer says at which step it is.
TELL_SECONDS = 10.0


def command(folder: StateFolder, parameters: Sequence[str]) -> list[str]:
    return [sys.executable, "-I", "-m", "zcache.keeper", str(folder.path), *parameters]


def check_parameters(parameters: Sequence[str]) -> None:
    for parameter in parameters:
        key, equals, _ = parameter.partition("=")
        if not equals or not key or key.startswith("-"):
            raise SwapError(f"{repeatable(parameter)!r} is not of the form key=value")
        if key == "control":
            raise SwapError("control= is chosen by swap-up: it lies in the state folder")


def try_parameters(parameters: Sequence[str]) -> None:
    """Have the server's own parser look at them, in a process that ends: before a keeper and a
    server are started, which takes a slow machine half a minute. What only a server can find
    (memory, a disk in use) it finds later."""
    try:
        done = subprocess.run(
            [*TRY_PARAMETERS, *parameters],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        words = " ".join(map(repeatable, parameters))
        raise SwapError(f"looking at the parameters stands still for {STEP_SECONDS:.0f} s: {words}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the parameters could not be looked at ({done.returncode})"]
        raise SwapError(lines[-1])


def error_lines(text: str) -> list[str]:
    """The lines in which the server says what is wrong, and where; its last words when none is
    marked as an error."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if "WARNING: " not in line] or lines  # which end nothing
    marked = []
    place = None  # the last line of a traceback that says where
    for line in lines:
        if line.lstrip().startswith('File "'):
            place = line
        elif "error" in line.lower():
            marked += [place, line] if place else [line]
            place = None
    return (marked or lines)[-_ERROR_LINE_COUNT:]


class KeeperProcess:
    """A keeper that this process has started; it goes on when the process ends. `log` is appended
    to."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        announce: Callable[[ProcessIdentity], None],
        start_seconds: float = 2 * STEP_SECONDS,
    ) -> None:
        """`announce` is told who it will be before it runs. Of `start_seconds`, which is what
        whoever waits allows for all of its start, a step may take half."""
        self._log = log
        self._steps = StepsWatch(step_seconds=max(STEP_SECONDS, start_seconds / 2))
        log.touch(mode=0o600)
        with (
            os.fdopen(self._steps.writer, "wb"),
            log.open("ab") as log_file,
            _new_orphan(arguments, log_file.fileno(), self._steps) as pid,
        ):
            # One that is over already is a zombie, or gone: no process ever started in tick 0.
            self.identity = process.identify(pid) or ProcessIdentity(pid, 0)
            announce(self.identity)

    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    def wait_until_ready(
        self, folder: StateFolder, timeout_seconds: float, tell: Callable[[str], None] = lambda _line: None
    ) -> None:
        """Its server answers at its control socket last of all, when it has locked and tried
        everything.

        nbdkit listens long before that. One that ends instead says why itself. Progress moves the
        deadline: a disk that is read once, or a file that has to be written to be allocated, takes
        as long as it takes. `tell` is told now and then where a long start is.
        """
        deadline_seconds = time.monotonic() + timeout_seconds
        tell_seconds = time.monotonic() + TELL_SECONDS
        said, told = self._steps.saying, ""
        while True:
            self.check_running()
            if is_answering(folder.control):
                return
            if self._steps.saying != said:
                said, deadline_seconds = self._steps.saying, time.monotonic() + timeout_seconds
            if time.monotonic() > tell_seconds and self._steps.step != told:
                told, tell_seconds = self._steps.step, time.monotonic() + TELL_SECONDS
                tell(f"starting: {told}")
            if time.monotonic() > deadline_seconds:
                raise SwapError(
                    f"the server is not ready after {timeout_seconds:.0f} s (--start-seconds); "
                    f"it is at this step: {self.step()}"
                )
            time.sleep(0.05)

    def check_running(self) -> None:
        """Raises `SwapError`, with its last words, if it has ended, and if its start stands
        still."""
        if not process.is_running(self.identity):
            said = error_lines(self.log()) or ["nothing"]
            raise SwapError("the server ended at its start; it said:\n  " + "\n  ".join(said))
        self._steps.look()
        if self._steps.is_overdue():
            raise SwapError(f"the start stands still at this step for {self._steps.seconds:.0f} s: {self._steps.step}")

    def step(self) -> str:
        """Where the start is."""
        self._steps.look()
        return self._steps.step


def is_answering(control: Path) -> bool:
    """Whether a server answers at its control socket."""
    if not control.exists():
        return False
    try:
        ask(control, "status")
    except EnvironmentProblem:
        return False
    return True


@contextlib.contextmanager
def _new_orphan(arguments: Sequence[str], log_fd: int, steps: StepsWatch) -> Iterator[int]:
    """The pid of the keeper-to-be, which is nobody's child by the time it runs: at the end of the
    block.

    Setsid's parent half has ended and been collected before the shell is told to go on, so the
    order is certain. If the block fails the shell reads the end of its input instead, and ends.
    """
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd), os.fdopen(write_fd, "w", buffering=1) as go:
        script = 'echo "$$"; read -r _ && exec "$@" </dev/null >&2'
        with subprocess.Popen(
            ["setsid", "--fork", "sh", "-c", script, "keeper", *arguments],
            stdin=read_fd,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            pass_fds=(steps.writer,),
            env={**os.environ, **steps.pass_on()},
            cwd="/",
            text=True,
        ) as setsid:
            assert setsid.stdout is not None
            first_line = setsid.stdout.readline()
            if setsid.wait() or not first_line:
                raise SwapError("the keeper could not be started: setsid was ended")
        yield int(first_line)
        go.write("\n")
