"""Watches the start of a server that has no keeper, from outside, and clears away what a failed one
leaves.

`scripts/serve` leaves this process behind when it becomes nbdkit. It ends when the server has
started. A step that takes too long (`zcache.steps`) is named in one line, and the server is ended.
Whatever a server that ends at its start has no time, or no leave, to remove is removed here:
nbdkit's socket and pid file, the control socket, a backing that it made.

It is nobody's child (nbdkit would not wait for it), and holds nothing of the server's but standard
error.
"""

import contextlib
import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from zcache.hardening.log_pipe import say
from zcache.linux.sockets import remove_if_dead
from zcache.steps import StepsWatch

#: A server that was killed is gone by then; one in the middle of a transfer to a disk that hangs
#: may not be.
KILL_SECONDS: Final = 10.0

#: Not for it: it has to see the end of the server that they are for.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def leave_guard(sockets: Sequence[Path], pid_file: Path | None) -> None:
    """Fork one for the program that the calling process is about to become. The sockets go with a
    failed start if nobody listens on them, and the pid file if it names that server. Raises
    `OSError`."""
    own = os.getpid()
    watch = StepsWatch()
    between = os.fork()
    if between == 0:
        with contextlib.suppress(BaseException):
            if os.fork() == 0:
                _guard(watch, own, sockets, pid_file)
        os._exit(0)
    os.waitpid(between, 0)
    watch.close()
    os.set_inheritable(watch.writer, True)
    os.environ.update(watch.pass_on())


def _guard(watch: StepsWatch, pid: int, sockets: Sequence[Path], pid_file: Path | None) -> NoReturn:
    with contextlib.suppress(BaseException):
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        low, high = sorted((2, watch.fileno()))
        os.closerange(0, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, os.sysconf("SC_OPEN_MAX"))
        if not _watch(watch, pid):
            _clear_away(watch, sockets, pid_file)
    os._exit(0)


def _watch(watch: StepsWatch, pid: int) -> bool:
    """Whether the server has started."""
    pidfd = _open(pid)
    poll = select.poll()
    poll.register(watch.fileno(), select.POLLIN)
    if pidfd >= 0:
        poll.register(pidfd, select.POLLIN)
    while True:
        rest_seconds = watch.rest_seconds()
        poll.poll(None if rest_seconds is None else max(rest_seconds, 0) * 1000 + 1)
        is_told = watch.look()
        if watch.has_ended:
            return True
        if watch.pid not in (None, pid):  # nbdkit --run: the server is the child of whom we were told
            if pidfd >= 0:
                poll.unregister(pidfd)
                os.close(pidfd)
            pid = watch.pid or pid
            pidfd = _open(pid)
            if pidfd >= 0:
                poll.register(pidfd, select.POLLIN)
        if pidfd < 0 or _has_ended(pidfd, 0 if is_told else KILL_SECONDS):  # the pipe may close before the sockets
            return False
        if watch.is_overdue():
            say(f"zcache: stands still at its start, {watch.step}, for {watch.seconds:.0f} s: ended")
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            _has_ended(pidfd, KILL_SECONDS)
            return False


def _open(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _has_ended(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _clear_away(watch: StepsWatch, sockets: Sequence[Path], pid_file: Path | None) -> None:
    for path in sockets:
        with contextlib.suppress(OSError):
            remove_if_dead(path)
    for path in watch.made:
        with contextlib.suppress(OSError):
            path.unlink()
    if pid_file and watch.pid is not None:
        with contextlib.suppress(OSError, ValueError):
            if int(pid_file.read_text()) == watch.pid:
                pid_file.unlink()
