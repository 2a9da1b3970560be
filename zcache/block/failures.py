"""What becomes of a request that fails, and of a client that is refused: an errno for the client,
and for the log one line in plain words that says what to do. The same again is counted
(`zcache.hardening.repeats`).

A bug in zcache is a line, too, with the places that the exception came from; their source is not
read, for that may have to wait for a disk.
"""

import contextlib
import errno
import threading
from collections.abc import Callable
from typing import Final

from zcache.clock import Clock
from zcache.errors import AT_ENGINES, BadInput, PageDamaged, PageLost, StoreFull
from zcache.hardening.repeats import Repeats

#: Of what an exception says of itself.
_MAX_TEXT: Final = 300
#: The innermost places of a bug.
_MAX_PLACES: Final = 12


class Failures:
    """Of one server. Its lock protects the counts; nothing is called under it."""

    def __init__(self, set_error: Callable[[int], None], say: Callable[[str], None], clock: Clock) -> None:
        """`set_error` is the front end's: the errno that this thread's client is to get."""
        self._set_error = set_error
        self._say = say
        self._repeats = Repeats(clock)
        self._lock = threading.Lock()

    def note(self, request: str, disk: str, error: Exception) -> None:
        """A request has failed, and its client is yet to be told."""
        number = _errno_of(error)
        self._set_error(number)
        with contextlib.suppress(MemoryError):
            name = errno.errorcode.get(number, number)
            self._tell(f"zcache: {disk}: a {request} failed, {name}: {_why(error)}")

    def refuse(self, error: Exception) -> None:
        """A client has not been let in, and is yet to be told."""
        self._set_error(errno.ENOENT if isinstance(error, BadInput | UnicodeError) else _errno_of(error))
        with contextlib.suppress(MemoryError):
            if isinstance(error, UnicodeError):
                why = "it asked for an export whose name is not UTF-8"
            else:
                why = str(error) if isinstance(error, BadInput) else _why(error)
            self._tell(f"zcache: a client was refused: {why}", f"refused: {type(error).__name__}")

    def say_counts(self, *, at_the_end: bool = False) -> None:
        """Call now and then, and at the end: say how often what was said has come again."""
        with self._lock:
            lines = self._repeats.due(at_the_end=at_the_end)
        for line in lines:
            self._say(line)

    def _tell(self, line: str, kind: str = "") -> None:
        with self._lock:
            line = self._repeats.add(line, kind)
        if line:
            self._say(line)


def _errno_of(error: Exception) -> int:
    if isinstance(error, StoreFull):
        return errno.ENOSPC
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    return (error.errno or errno.EIO) if isinstance(error, OSError) else errno.EIO


def _why(error: Exception) -> str:
    """In plain words, with what to do."""
    match error:
        case StoreFull():
            return f"{error}; what Linux cannot swap out stays in its RAM"
        case PageLost():
            return "its last write found no room, so there is nothing to read; write or trim it"
        case PageDamaged() if AT_ENGINES in str(error):
            return f"{_cut(error)}; look at the engines (`zcache status`)"
        case PageDamaged():
            return f"{_cut(error)}; look at the disk below (`zcache status`, dmesg, smartctl)"
        case MemoryError():
            return "there was no memory for it; give a smaller budget, or free memory"
        case OSError(errno=int()):
            return f"{error.strerror}; look at the disk (`zcache status`, dmesg, smartctl)"
        case _:
            return f"a bug in zcache, please report it: {type(error).__name__}: {_cut(error)}; at {_places(error)}"


def _cut(error: Exception) -> str:
    return " ".join(str(error)[:_MAX_TEXT].split())


def _places(error: Exception) -> str:
    """The innermost first."""
    places = []
    trace = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return " < ".join(places[: -_MAX_PLACES - 1 : -1])
