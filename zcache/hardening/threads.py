"""What a thread needs once before it serves requests under memory pressure: a Python thread state
that stays, and a stack that is there.

CPython makes a thread state at each callback on a thread that it did not create, and destroys it
afterwards: one `mmap` and one `munmap` for each request, in the swap path. One extra
`PyGILState_Ensure` keeps the state alive. The mark that it was done lives in a `threading.local`,
which dies with the state, so it cannot lie.

Such a thread destroys its state itself when it ends, by destructors of thread-specific data
(pthread_key_create(3)), whatever it was for: a connection may have several threads, and nbdkit
calls `close` on one of them. Nobody else may do it: since 3.12, CPython clears the binding of the
thread that calls, not that of the one that the state belonged to, and then aborts at the caller's
next request ("non-NULL old thread state").
"""

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Final

from zcache.linux import libc, memory

#: All of a thread stack as scripts/serve sets it; where stacks are larger (8 MiB by default), the
#: part that is used.
STACK_BYTES: Final = 512 << 10

#: What our own threads use of theirs: a few dozen frames of Python.
OWN_STACK_BYTES: Final = 128 << 10

#: The limit for a thread that gives real time up for a moment, and wants it back without
#: privileges.
REAL_TIME_PRIORITY: Final = 1

_ensure: Final = ctypes.pythonapi.PyGILState_Ensure
_this_state: Final = ctypes.pythonapi.PyGILState_GetThisThreadState
_this_state.restype = ctypes.c_void_p


class _Mark:
    """Of a thread whose state is kept; goes with the state."""

    __slots__ = ("__weakref__",)


_kept = threading.local()
_marks: "weakref.WeakSet[_Mark]" = weakref.WeakSet()
_keeping = True
_farewell: tuple[int, ...] = ()  # the keys of `_make_farewell`, once there are any


def leave_as_they_are() -> None:
    """Let `keep_thread` do nothing, in threads to come (`hardening=off`)."""
    global _keeping
    _keeping = False


def kept_threads() -> int:
    """How many threads' states are kept."""
    return len(_marks)


def begin_own_thread(name: str) -> None:
    """Call first in a thread that we start ourselves: it has a state, but needs its stack all the
    same, because a fault is taken with the GIL held; and a name that the kernel shows."""
    libc.name_thread(name)
    memory.populate_stack(OWN_STACK_BYTES)


def keep_thread() -> None:
    """Call first in each callback that serves a request; works once a thread, and costs a look-up
    after that."""
    try:
        _kept.mark  # noqa: B018
    except AttributeError:
        _kept.mark = _Mark()
        if _keeping:
            _marks.add(_kept.mark)
            _ensure()
            state = _this_state()
            for key in _farewell or _make_farewell():
                libc.set_thread_value(key, state)
            memory.populate_stack(STACK_BYTES)


def _make_farewell() -> tuple[int, ...]:
    """What CPython does at a thread's last PyGILState_Release, as three destructors, called in this
    order: take the GIL with the state, clear the state, delete it and let go of the GIL.

    glibc calls destructors by the number of their key (nptl/nptl_deallocate_tsd.c), and has by then
    forgotten CPython's own value, which is why it is not PyGILState_Release itself that is called.
    """
    global _farewell
    api = ctypes.pythonapi
    keys: list[int] = []
    for step in (api.PyEval_RestoreThread, api.PyThreadState_Clear, api.PyThreadState_DeleteCurrent):
        key = libc.new_thread_key(step)
        while keys and key < keys[-1]:  # a number that somebody has given back: it stays ours, unused
            key = libc.new_thread_key(step)
        keys.append(key)
    _farewell = tuple(keys)  # two threads at once make two sets, of which each is whole
    return _farewell


@contextlib.contextmanager
def without_real_time() -> Iterator[None]:
    """For a thread that takes memory which is not for requests: a real-time task may take what is
    kept below the min watermark, and that is for replies. Afterwards it is what it was."""
    if os.sched_getscheduler(0) != os.SCHED_RR:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # no limit was set
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))
