"""How nbdkit is told that a request failed: by an exception, and in no other way.

It keeps what it is told, and prints what `traceback.format_exception` makes of it
(plugins/python/errors.c, the same in 1.32 and 1.42): with an exception for each failure, 1 KiB and
five lines. So there is one exception for all of them, `FAILED`. Each callback lets go of it itself,
like this, and not by a function, whose frame would be kept:

    try:
        raise FAILED
    except RequestFailed:
        FAILED.__traceback__ = None
        raise

A `raise` with nothing behind it adds no traceback, so nbdkit is given none, and what it keeps is a
reference. What it prints of `FAILED` is a line that the log pipe leaves out.
"""

import traceback
from collections.abc import Callable
from typing import Any, Final

from zcache.hardening.log_pipe import SAID


class RequestFailed(Exception):
    """How nbdkit is told that a request failed; there is one."""


FAILED: Final = RequestFailed()


def print_failures_in_a_line() -> None:
    """From here on, nbdkit prints nothing of `FAILED` that is worth reading. All other exceptions
    are as they were."""
    traceback.format_exception = _Format(traceback.format_exception)


class _Format:
    """`traceback.format_exception`."""

    def __init__(self, other: Callable[..., list[str]]) -> None:
        self._other = other

    def __call__(self, *words: Any, **options: Any) -> list[str]:
        """nbdkit gives type and exception, and the traceback if there is one."""
        return [f"failed{SAID}"] if FAILED in words else self._other(*words, **options)
