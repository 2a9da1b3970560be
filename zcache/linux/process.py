"""A process named so that a reused pid can never be taken for it.

A pid alone names whatever runs under it today.  A pid with the start time the kernel recorded for
it (field 22 of /proc/PID/stat, in clock ticks since boot) names one process for ever.  Signals go
through a pidfd which is opened before the start time is compared, so nothing can slip in between
the comparison and the signal.
"""

import contextlib
import errno
import os
import re
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

_PROC = Path("/proc")


class ProcessIdentity(NamedTuple):
    """A process, and not another that has got its pid since."""

    pid: int
    start_time_ticks: int


def is_pid(value: object) -> bool:
    """Whether the kernel could have given that to a process (PID_MAX_LIMIT)."""
    return type(value) is int and 0 < value <= 1 << 22


def parse_stat(text: str) -> tuple[str, int]:
    """State and start time in ticks from /proc/PID/stat; a command's name may hold blanks and
    brackets."""
    fields = text.rpartition(")")[2].split()
    # After the name comes field 3, the state; field 22 is therefore the twentieth from here.
    return fields[0], int(fields[19])


def identify(pid: int, proc: Path = _PROC) -> ProcessIdentity | None:
    """The running process under this pid, or None; a zombie has ended and counts as gone."""
    text = _read_stat(pid, proc)
    if text is None:
        return None
    state, start_time_ticks = parse_stat(text)
    return None if state in "ZX" else ProcessIdentity(pid, start_time_ticks)


def parent(pid: int, proc: Path = _PROC) -> int | None:
    """Of the process under this pid now; a zombie has one, too."""
    text = _read_stat(pid, proc)
    return None if text is None else int(text.rpartition(")")[2].split()[1])


def family(pid: int, proc: Path = _PROC) -> Iterator[int]:
    """A process, and all that come of it and have not been left to others."""
    yield pid
    children: list[int] = []
    tasks = proc / str(pid) / "task"
    with contextlib.suppress(OSError):  # it has ended
        for task in list(tasks.iterdir()):
            with contextlib.suppress(OSError):
                children += map(int, (task / "children").read_text().split())
    for child in children:
        yield from family(child, proc)


def status_bytes(pid: int | Literal["self"], name: str, proc: Path = _PROC) -> int:
    """What /proc/PID/status says of its memory (VmSize, RssAnon, …); 0 if it cannot be read now.
    Our own pid may be another's in a /proc of another namespace: "self" never is."""
    with contextlib.suppress(OSError):
        return _kib_of((proc / str(pid) / "status").read_text(), name) << 10
    return 0


def share_bytes(pid: int, proc: Path = _PROC) -> int:
    """What a process has, in RAM or swapped out; what it shares in equal parts (Pss). 0 if it
    cannot be read now."""
    with contextlib.suppress(OSError):
        text = (proc / str(pid) / "smaps_rollup").read_text()
        return _kib_of(text, "Pss") + _kib_of(text, "SwapPss") << 10
    return 0


def _kib_of(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _read_stat(pid: int, proc: Path) -> str | None:
    try:
        return (proc / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_running(process: ProcessIdentity, proc: Path = _PROC) -> bool:
    return identify(process.pid, proc) == process


def in_session(leader_pid: int, argument: str, proc: Path = _PROC) -> Iterator[ProcessIdentity]:
    """The running processes of a session among whose arguments is this one.

    Arguments lie in the memory of the process itself. That of strangers may be swapped out, to a
    device that nobody serves any more, and who looks at it then waits for ever (seen): so it is not
    looked at.
    """
    for entry in proc.glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            stat = _read_stat(int(entry.name), proc)
            if stat is None or int(stat.rpartition(")")[2].split()[3]) != leader_pid:
                continue
            if os.fsencode(argument) in (entry / "cmdline").read_bytes().split(b"\0"):
                identity = identify(int(entry.name), proc)
                if identity:
                    yield identity


@contextlib.contextmanager
def opened(process: ProcessIdentity) -> Iterator[int | None]:
    """A pidfd for this very process, or None when it has ended."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EINVAL):  # EINVAL: it has ended, and a session that it led has not
            raise
        yield None
        return
    try:
        yield pidfd if is_running(process) else None
    finally:
        os.close(pidfd)


def wait_for_end(pidfd: int, timeout_seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))


def stop(process: ProcessIdentity, term_seconds: float, kill_seconds: float = 10) -> str:
    """Ask the process to end, then make it; says how it went: "gone", "ended", "killed" or "stuck".

    The caller vouches that nothing depends on the process any more.
    """
    with opened(process) as pidfd:
        if pidfd is None:
            return "gone"
        for signum, seconds, outcome in (
            (signal.SIGTERM, term_seconds, "ended"),
            (signal.SIGKILL, kill_seconds, "killed"),
        ):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signum)
            if wait_for_end(pidfd, seconds):
                _reap(process.pid)
                return outcome
    return "stuck"


def _reap(pid: int) -> None:
    """Collect the exit status when the process is our child; when it is not, its own parent
    does."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
