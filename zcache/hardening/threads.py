"""What a thread needs once before it serves requests under memory pressure: a Python thread state that stays, and a
stack that is there.

CPython makes a thread state at each callback on a thread that it did not create, and destroys it afterwards: one `mmap`
and one `munmap` for each request, in the swap path. One extra `PyGILState_Ensure` keeps the state alive. The mark
that it was done lives in a `threading.local`, which dies with the state, so it cannot lie.

Nobody destroys such a state when its thread ends, so the next new thread does that for all that have ended since.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zcache import libc

#: All of a thread stack as scripts/serve sets it; where stacks are larger (8 MiB by default), the part that is used.
STACK_BYTES: Final = 512 << 10

#: What our own threads use of theirs: a few dozen frames of Python.
OWN_STACK_BYTES: Final = 128 << 10

#: The limit for a thread that gives real time up for a moment, and wants it back without privileges.
REAL_TIME_PRIORITY: Final = 1

_ensure: Final = ctypes.pythonapi.PyGILState_Ensure
_this_state: Final = ctypes.pythonapi.PyGILState_GetThisThreadState
_this_state.restype = ctypes.c_void_p
_clear: Final = ctypes.pythonapi.PyThreadState_Clear
_clear.argtypes = [ctypes.c_void_p]
_delete: Final = ctypes.pythonapi.PyThreadState_Delete
_delete.argtypes = [ctypes.c_void_p]

_kept = threading.local()
_keeping = True
_states: dict[int, int] = {}  # native thread id to the address of the state that is kept for it
# A copy made by fork(2) has one thread, under another id: its state would be taken for a dead thread's. Those of the
# other threads, Python destroys.
os.register_at_fork(after_in_child=_states.clear)


def leave_as_they_are() -> None:
    """Let `keep_thread` do nothing, in threads to come (`hardening=off`)."""
    global _keeping
    _keeping = False


def kept_threads() -> int:
    """How many threads' states are kept."""
    return len(_states)


def begin_own_thread(name: str) -> None:
    """Call first in a thread that we start ourselves: it has a state, but needs its stack all the same, because a fault
    is taken with the GIL held; and a name that the kernel shows."""
    libc.name_thread(name)
    libc.populate_stack(OWN_STACK_BYTES)


def keep_thread() -> None:
    """Call first in each callback that serves a request; works once a thread, and costs a look-up after that."""
    try:
        _kept.mark  # noqa: B018
    except AttributeError:
        _kept.mark = True
        if _keeping:
            own = threading.get_native_id()
            _destroy_states_of_the_dead(own)
            _ensure()
            _states[own] = _this_state()
            libc.populate_stack(STACK_BYTES)


def _destroy_states_of_the_dead(own: int) -> None:
    """A state under our own id is a dead thread's as well: its id was given to us."""
    for thread in list(_states):
        if thread == own or not Path(f"/proc/self/task/{thread}").exists():
            state = _states.pop(thread, None)
            if state:
                _clear(state)
                _delete(state)


@contextlib.contextmanager
def without_real_time() -> Iterator[None]:
    """For a thread that takes memory which is not for requests: a real-time task may take what is kept below the min
    watermark, and that is for replies. Afterwards it is what it was."""
    if os.sched_getscheduler(0) != os.SCHED_RR:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # no limit was set
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))
