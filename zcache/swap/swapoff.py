"""Turning the swap area off: the one step that runs when memory is short and may take minutes.

The system call is made directly, in a forked child, and for three reasons not by util-linux:
  * Nothing is loaded from disk.  The pages of /sbin/swapoff may have been evicted; ours are here,
    and locked.
  * The kernel marks the task inside swapoff(2) as the first to be killed when memory runs out (its
    "OOM origin"), whatever its oom_score_adj.  A child takes that blow, and the parent lives to say
    what happened. Nothing is lost by it: a swapoff that is killed or interrupted leaves the swap on
    and every page where it was.
  * The parent can show progress meanwhile.
"""

import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from zcache.errors import StillSwappingError
from zcache.linux import process
from zcache.swap.interruption import SIGNALS, is_ignored

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_ADVICE = "the swap is still on and its server still runs"


def lock_memory() -> bool:
    """Lock what this process has touched and will touch; on fault, so that unused libraries cost
    nothing."""
    locked: int = ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    return locked == 0


@contextlib.contextmanager
def spared_by_oom_killer(score: Path = Path("/proc/self/oom_score_adj")) -> Iterator[None]:
    """Where the container allows it: whoever reports on swapoff should not be killed for it."""
    before = score.read_text()
    with contextlib.suppress(OSError):
        score.write_text("-1000")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            score.write_text(before)


def swap_off(device: str, progress: Callable[[], None], interval_seconds: float) -> None:
    """Return when the swap is off, however long that takes; `progress` is called at each interval.

    Raises StillSwappingError, with the area as it was, when the kernel cannot or the user will not
    wait.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    path = device.encode()
    try:
        child_pid = os.fork()
    except OSError as error:
        raise StillSwappingError(f"cannot fork ({error.strerror}): {_ADVICE}; end programs, then try again") from None
    if child_pid == 0:
        _swap_off_in_child(libc, path)
    # After the fork: the child is to be killed rather than the one that reports it.
    with spared_by_oom_killer():
        try:
            _await_end(child_pid, progress, interval_seconds)
        except BaseException:
            os.kill(child_pid, signal.SIGTERM)
            said = explain(os.waitpid(child_pid, 0)[1]) or "the swap is off by now"
            raise StillSwappingError(f"interrupted; {said}; run swap-down again") from None
        outcome = explain(os.waitpid(child_pid, 0)[1])
    if outcome:
        raise StillSwappingError(outcome)


def _swap_off_in_child(libc: ctypes.CDLL, path: bytes) -> None:
    for signum in SIGNALS:
        if not is_ignored(signum) or signum == signal.SIGTERM:  # by which the parent ends it
            signal.signal(signum, signal.SIG_DFL)
    failed = libc.swapoff(path)
    os._exit(ctypes.get_errno() if failed else 0)


def _await_end(child_pid: int, progress: Callable[[], None], interval_seconds: float) -> None:
    pidfd = os.pidfd_open(child_pid)
    try:
        while not process.wait_for_end(pidfd, interval_seconds):
            progress()
    finally:
        os.close(pidfd)


def explain(wait_status: int) -> str | None:
    """None when swapoff succeeded, else one line on why not and what to do."""
    code = os.waitstatus_to_exitcode(wait_status)
    if code == 0:
        return None
    if code == -signal.SIGKILL:
        return f"the kernel ended swapoff, for memory ran out: {_ADVICE}; end programs, then try again"
    if code < 0:
        return f"swapoff was ended by {signal.Signals(-code).name}: {_ADVICE}"
    if code == errno.ENOMEM:
        return f"too little memory to take the pages back: {_ADVICE}; end programs, then try again"
    return f"swapoff failed ({os.strerror(code)}): {_ADVICE}"
