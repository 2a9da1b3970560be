"""What a thread needs once before it serves requests under memory pressure: a Python thread state that stays, and a
stack that is there.

CPython makes a thread state at each callback on a thread that it did not create, and destroys it afterwards: one
`mmap` and one `munmap` for each request, in the swap path. One extra `PyGILState_Ensure` keeps the state alive until
the thread ends. The mark that it was done lives in a `threading.local`, which dies with the state, so it cannot lie.
"""

import ctypes
import threading
from typing import Final

from zcache import libc

#: All of a thread stack as scripts/serve sets it; where stacks are larger (8 MiB by default), the part that is used.
STACK_BYTES: Final = 512 << 10

_ensure: Final = ctypes.PyDLL(None).PyGILState_Ensure
_kept = threading.local()
_keeping = True
kept_threads: list[int] = []  # native ids, for the status


def leave_as_they_are() -> None:
    """Let `keep_thread` do nothing, in threads to come (`hardening=off`)."""
    global _keeping
    _keeping = False


def keep_thread() -> None:
    """Call first in each callback; does its work once a thread, and costs an attribute look-up after that."""
    try:
        _kept.mark  # noqa: B018
    except AttributeError:
        _kept.mark = True
        if not _keeping:
            return
        _ensure()
        kept_threads.append(threading.get_native_id())
        libc.populate_stack(STACK_BYTES)
