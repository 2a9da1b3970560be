"""The C library and kernel calls that Python does not offer, or offers wrongly.

All of them release the GIL. What is done to mapped memory is in `memory.py`, Landlock in
`landlock.py`; both call through `LIBC`.
"""

import contextlib
import ctypes
import os
import signal
import struct
from typing import Any, Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_CAPBSET_DROP: Final = 24
PR_SET_TIMERSLACK: Final = 29
PR_GET_TIMERSLACK: Final = 30
PR_MCE_KILL: Final = 33
PR_MCE_KILL_CLEAR: Final = 0
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_SET_THP_DISABLE: Final = 41
PR_GET_THP_DISABLE: Final = 42
PR_SET_IO_FLUSHER: Final = 57
PR_GET_IO_FLUSHER: Final = 58
PR_SET_MEMORY_MERGE: Final = 67
PR_GET_MEMORY_MERGE: Final = 68
CAP_IPC_LOCK: Final = 14
EHWPOISON: Final = 133  # of which Python does not know
MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522
# glibc has no function for it; the number is the same for every architecture. All others here
# are the same on x86-64 and arm64, which both take them from the kernel's asm-generic (PowerPC, for
# one, has its own MCL_*).
_MEMFD_SECRET: Final = 447  # Linux 5.14
# Older ones, whose numbers are not the same (arm64's are asm-generic's): ioprio_get, ioprio_set,
# get_mempolicy, set_mempolicy. Elsewhere we do without.
_BY_MACHINE: Final = {"x86_64": (252, 251, 239, 238), "aarch64": (31, 30, 236, 237)}
_IOPRIO_GET, _IOPRIO_SET, _GET_MEMPOLICY, _SET_MEMPOLICY = _BY_MACHINE.get(os.uname().machine, (-1, -1, -1, -1))
_TGKILL: Final = {"x86_64": 234, "aarch64": 131}.get(os.uname().machine, -1)
_IOPRIO_WHO_PROCESS: Final = 1
_PER_LINUX: Final = 0
_PERSONALITY_ASK: Final = 0xFFFFFFFF
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
FALLOC_FL_ZERO_RANGE: Final = 16
M_TRIM_THRESHOLD: Final = -1
M_TOP_PAD: Final = -2
M_MMAP_THRESHOLD: Final = -3
M_MMAP_MAX: Final = -4
M_ARENA_MAX: Final = -8

LIBC.malloc.restype = ctypes.c_void_p
LIBC.malloc.argtypes = [ctypes.c_size_t]
LIBC.malloc_trim.argtypes = [ctypes.c_size_t]
LIBC.free.argtypes = [ctypes.c_void_p]
LIBC.sbrk.restype = ctypes.c_void_p
LIBC.sbrk.argtypes = [ctypes.c_ssize_t]
LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
LIBC.syscall.restype = ctypes.c_long
LIBC.personality.argtypes = [ctypes.c_ulong]


def raise_errno() -> None:
    """`OSError`, for a call through `LIBC` that has just failed."""
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def prctl(option: int, argument: int) -> int:
    """prctl(2); the kernel wants the unused arguments to be zero words."""
    result: int = LIBC.prctl(option, *(ctypes.c_ulong(word) for word in (argument, 0, 0, 0)))
    if result < 0:
        raise_errno()
    return result


def name_thread(name: str) -> None:
    """The calling thread's name for the kernel: in `top -H`, /proc and kernel traces. Cut to 15
    bytes."""
    LIBC.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()))


def new_thread_key(destructor: Any) -> int:
    """pthread_key_create(3): a number for a word of each thread's own. `destructor`, a C function,
    is called with that word when a thread ends that has set it."""
    key = ctypes.c_uint()
    number = LIBC.pthread_key_create(ctypes.byref(key), ctypes.cast(destructor, ctypes.c_void_p))
    if number:
        raise OSError(number, os.strerror(number))
    return key.value


def set_thread_value(key: int, value: int) -> None:
    """pthread_setspecific(3): the calling thread's word under that key."""
    number = LIBC.pthread_setspecific(ctypes.c_uint(key), ctypes.c_void_p(value))
    if number:
        raise OSError(number, os.strerror(number))


def capset(capabilities: int) -> None:
    """capset(2): the calling thread's effective and permitted capabilities, as bits; it can pass
    none on."""
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if LIBC.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)) < 0:
        raise_errno()


def load_libgcc() -> None:
    """A daemon thread that meets the end of the interpreter has glibc load this, and abort the
    process without it: now, while files can be opened, and nothing waits for us."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")


def put_off_abort() -> None:
    """Let a process that aborts end 6 s later: its other threads pass on what was said of it
    meanwhile.

    The handler is sleep(3) itself, which a handler may call (signal-safety(7)), and which takes the
    signal's number, 6, for seconds. abort(3) ends the process when it returns. For a process that
    is known to abort while its memory is whole: its other threads go on working for those 6 s.
    """
    LIBC.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    LIBC.signal.restype = ctypes.c_void_p
    LIBC.signal(signal.SIGABRT, ctypes.cast(LIBC.sleep, ctypes.c_void_p))


def memfd_secret() -> int:
    """memfd_secret(2): a descriptor, closed on exec(2). Raises `OSError` where the kernel has none
    (before Linux 6.5: without `secretmem.enable=1` on its command line)."""
    descriptor: int = LIBC.syscall(ctypes.c_long(_MEMFD_SECRET), ctypes.c_ulong(os.O_CLOEXEC))
    if descriptor < 0:
        raise_errno()
    return descriptor


def ioprio() -> int:
    """ioprio_get(2) of this thread: class and level, 0 if none was ever set, or it cannot be
    known."""
    return max(0, int(LIBC.syscall(ctypes.c_long(_IOPRIO_GET), _IOPRIO_WHO_PROCESS, 0)))


def reset_ioprio() -> None:
    """ioprio_set(2): none, which goes by the nice value. Raises `OSError`."""
    if LIBC.syscall(ctypes.c_long(_IOPRIO_SET), _IOPRIO_WHO_PROCESS, 0, 0) < 0:
        raise_errno()


def memory_policy() -> int:
    """get_mempolicy(2): this thread's NUMA policy, 0 if it is the default or cannot be known."""
    mode = ctypes.c_int()
    words = (ctypes.byref(mode), None, ctypes.c_ulong(0), None, ctypes.c_ulong(0))
    return 0 if LIBC.syscall(ctypes.c_long(_GET_MEMPOLICY), *words) < 0 else mode.value


def reset_memory_policy() -> None:
    """set_mempolicy(2): the default. Raises `OSError`."""
    if LIBC.syscall(ctypes.c_long(_SET_MEMPOLICY), 0, None, ctypes.c_ulong(0)) < 0:
        raise_errno()


def reset_personality() -> bool:
    """personality(2): Linux's own, from the next exec(2) on. Whether it was another. Raises
    `OSError`."""
    before = LIBC.personality(_PERSONALITY_ASK)
    if before in (_PER_LINUX, -1):
        return False
    if LIBC.personality(_PER_LINUX) < 0:
        raise_errno()
    return True


def signal_thread(process: int, thread: int, number: int) -> None:
    """tgkill(2), for any process. Raises `OSError`."""
    if LIBC.syscall(ctypes.c_long(_TGKILL), ctypes.c_int(process), ctypes.c_int(thread), ctypes.c_int(number)) < 0:
        raise_errno()


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), of which Python knows no modes."""
    if LIBC.fallocate(descriptor, mode, offset, length) < 0:
        raise_errno()


def syncfs(descriptor: int) -> None:
    """syncfs(2): all of the file system that a file is on."""
    if LIBC.syncfs(descriptor) < 0:
        raise_errno()


def forbid_core_dumps() -> None:
    """A core dump would take keys, and pages that others have swapped out, to a disk."""
    prctl(PR_SET_DUMPABLE, 0)


def mlockall(flags: int) -> None:
    """mlockall(2)."""
    if LIBC.mlockall(flags) < 0:
        raise_errno()


def mallopt(option: int, value: int) -> None:
    """mallopt(3)."""
    if not LIBC.mallopt(option, value):
        raise OSError(0, f"mallopt({option}, {value}) was refused")


def malloc(size_bytes: int) -> int:
    """malloc(3): an address that must be given to `free`."""
    address: int | None = LIBC.malloc(size_bytes)
    if address is None:
        raise MemoryError
    return address


def free(address: int) -> None:
    """free(3)."""
    LIBC.free(address)


def malloc_trim(keep_bytes: int) -> None:
    """malloc_trim(3): give back what is free in whole pages; at the end of the heap, all but
    `keep_bytes`."""
    LIBC.malloc_trim(keep_bytes)


class _Mallinfo2(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    )


LIBC.mallinfo2.restype = _Mallinfo2


def malloced_bytes() -> int:
    """What malloc has given out and not got back: mallinfo2(3), of all arenas and of what is
    mapped."""
    figures = LIBC.mallinfo2()
    return int(figures.uordblks + figures.hblkhd)


def program_break() -> int:
    """The end of the heap: sbrk(0)."""
    address: int = LIBC.sbrk(0)
    return address
