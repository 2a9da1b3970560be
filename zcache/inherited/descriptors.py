"""Open files that a program inherits: those that somebody named are kept, all others are closed.

Others' files would stay open for as long as the swap is on: a lock that its owner believes to have
given back, the end of a pipe that somebody reads to its end. Named are: 0 to 2; sockets to listen
on (sd_listen_fds(3)); what a keeper gives its servers (`image=`, `standby=`); the pipe on which a
start tells its steps; and whatever an argument calls `/dev/fd/N`, `/proc/self/fd/N` or, in a
command to run, `<&N`.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Final

from zcache import steps

_FIRST_LISTENER: Final = 3
_NAMED: Final = re.compile(r"(?:/fd/|[<>]&|\A(?:image|standby)=)(\d+)", re.ASCII)


def drop_strangers(environment: MutableMapping[str, str], words: Sequence[str]) -> None:
    """Forget variables that name descriptors, and were not meant for this process. A keeper's
    servers have no LISTEN_PID that is right, and are meant all the same."""
    is_kept = any(word.startswith("standby=") for word in words)
    if not is_kept and environment.get("LISTEN_PID", str(os.getpid())) != str(os.getpid()):
        for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
            environment.pop(name, None)
    if steps.VARIABLE in environment and not _is_pipe(environment[steps.VARIABLE]):
        for name in (steps.VARIABLE, steps.SECONDS_VARIABLE):
            environment.pop(name, None)


def _is_pipe(number: str) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(int(number)).st_mode)
    except (ValueError, OverflowError, OSError):
        return False


def named(words: Iterable[str], environment: MutableMapping[str, str]) -> set[int]:
    """The descriptors that are meant for this process."""
    found = {0, 1, 2}
    for word in words:
        found.update(int(match[1]) for match in _NAMED.finditer(word))
    with contextlib.suppress(ValueError):
        found.add(int(environment.get(steps.VARIABLE, "")))
    with contextlib.suppress(ValueError):
        found.update(range(_FIRST_LISTENER, _FIRST_LISTENER + min(int(environment.get("LISTEN_FDS", "")), 1 << 10)))
    return found


def close_unnamed(keep: set[int]) -> None:
    """What this process has opened itself is closed on exec(2), and so was not inherited."""
    for descriptor in list(_open_descriptors()):
        with contextlib.suppress(OSError):
            if descriptor not in keep and os.get_inheritable(descriptor):
                os.close(descriptor)


def _open_descriptors() -> Iterator[int]:
    try:
        yield from map(int, os.listdir("/proc/self/fd"))  # noqa: PTH208 (no paths are needed)
    except OSError:  # no /proc
        yield from range(3, 1 << 10)
