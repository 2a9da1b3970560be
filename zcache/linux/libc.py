"""The C library and kernel calls that Python does not offer, or offers wrongly.

All of them release the GIL. That is why `populate` is here: `mmap.madvise` of Python keeps it, and
the populating of memory waits for memory; under pressure the whole server then waits for what only
the server could bring about. (It did: the test VM wedged within 20 s.)
"""

import contextlib
import ctypes
import mmap
import os
import signal
import struct
from typing import Any, Final

from zcache.linux.kernel_page import KERNEL_PAGE_BYTES, page_end, page_start

_libc: Final = ctypes.CDLL(None, use_errno=True)

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
MAP_FIXED: Final = 16
MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_DONTNEED_LOCKED: Final = 24  # Linux 5.18
MADV_POPULATE_READ: Final = 22  # Linux 5.14, both
MADV_POPULATE_WRITE: Final = 23
_CAPABILITY_VERSION_3: Final = 0x20080522
# glibc has no functions for these; the numbers are the same for every architecture. All others here
# are the same on x86-64 and arm64, which both take them from the kernel's asm-generic (PowerPC, for
# one, has its own MCL_*).
_LANDLOCK_CREATE_RULESET: Final = 444  # Linux 5.13, all three
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_PROCESS_MADVISE: Final = 440  # Linux 5.10
_MEMFD_SECRET: Final = 447  # Linux 5.14
# Older ones, whose numbers are not the same (arm64's are asm-generic's): ioprio_get, ioprio_set,
# get_mempolicy, set_mempolicy. Elsewhere we do without.
_BY_MACHINE: Final = {"x86_64": (252, 251, 239, 238), "aarch64": (31, 30, 236, 237)}
_IOPRIO_GET, _IOPRIO_SET, _GET_MEMPOLICY, _SET_MEMPOLICY = _BY_MACHINE.get(os.uname().machine, (-1, -1, -1, -1))
_IOPRIO_WHO_PROCESS: Final = 1
_PER_LINUX: Final = 0
_PERSONALITY_ASK: Final = 0xFFFFFFFF
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
FALLOC_FL_ZERO_RANGE: Final = 16
M_TRIM_THRESHOLD: Final = -1
M_TOP_PAD: Final = -2
M_MMAP_MAX: Final = -4
M_ARENA_MAX: Final = -8

_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.malloc_trim.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]
_libc.sbrk.restype = ctypes.c_void_p
_libc.sbrk.argtypes = [ctypes.c_ssize_t]
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
_libc.pthread_self.restype = ctypes.c_ulong
_libc.pthread_getattr_np.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
_libc.pthread_attr_getstack.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
_libc.pthread_attr_destroy.argtypes = [ctypes.c_void_p]
_libc.syscall.restype = ctypes.c_long
_libc.personality.argtypes = [ctypes.c_ulong]
_PTHREAD_ATTR_BYTES: Final = 64  # pthread_attr_t is 56 bytes on x86-64, 64 on arm64


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def prctl(option: int, argument: int) -> int:
    """prctl(2); the kernel wants the unused arguments to be zero words."""
    result: int = _libc.prctl(option, *(ctypes.c_ulong(word) for word in (argument, 0, 0, 0)))
    if result < 0:
        _raise_errno()
    return result


def name_thread(name: str) -> None:
    """The calling thread's name for the kernel: in `top -H`, /proc and kernel traces. Cut to 15
    bytes."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()))


def new_thread_key(destructor: Any) -> int:
    """pthread_key_create(3): a number for a word of each thread's own. `destructor`, a C function,
    is called with that word when a thread ends that has set it."""
    key = ctypes.c_uint()
    number = _libc.pthread_key_create(ctypes.byref(key), ctypes.cast(destructor, ctypes.c_void_p))
    if number:
        raise OSError(number, os.strerror(number))
    return key.value


def set_thread_value(key: int, value: int) -> None:
    """pthread_setspecific(3): the calling thread's word under that key."""
    number = _libc.pthread_setspecific(ctypes.c_uint(key), ctypes.c_void_p(value))
    if number:
        raise OSError(number, os.strerror(number))


def capset(capabilities: int) -> None:
    """capset(2): the calling thread's effective and permitted capabilities, as bits; it can pass
    none on."""
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)) < 0:
        _raise_errno()


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
    _libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    _libc.signal.restype = ctypes.c_void_p
    _libc.signal(signal.SIGABRT, ctypes.cast(_libc.sleep, ctypes.c_void_p))


def landlock_version() -> int:
    """Which version of Landlock (landlock(7)) the kernel has; raises `OSError` if none."""
    return _landlock(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)


def landlock_create_ruleset(attributes: bytes) -> int:
    """landlock_create_ruleset(2): a descriptor."""
    return _landlock(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)


def landlock_add_rule(ruleset: int, path_beneath: bytes) -> None:
    """landlock_add_rule(2), for all that is beneath a folder."""
    _landlock(_LANDLOCK_ADD_RULE, ruleset, 1, path_beneath, 0)


def landlock_restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2): the calling thread, and those that it starts."""
    _landlock(_LANDLOCK_RESTRICT_SELF, ruleset, 0)


def _landlock(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        _raise_errno()
    return result


def process_madvise(pidfd: int, start: int, length: int, advice: int) -> None:
    """process_madvise(2), for one range of another process's memory. Raises `OSError`."""
    vector = struct.pack("@PN", start, length)
    arguments = (ctypes.c_long(pidfd), vector, ctypes.c_size_t(1), ctypes.c_long(advice), ctypes.c_ulong(0))
    if _libc.syscall(ctypes.c_long(_PROCESS_MADVISE), *arguments) < 0:
        _raise_errno()


def memfd_secret() -> int:
    """memfd_secret(2): a descriptor, closed on exec(2). Raises `OSError` where the kernel has none
    (before Linux 6.5: without `secretmem.enable=1` on its command line)."""
    descriptor: int = _libc.syscall(ctypes.c_long(_MEMFD_SECRET), ctypes.c_ulong(os.O_CLOEXEC))
    if descriptor < 0:
        _raise_errno()
    return descriptor


def ioprio() -> int:
    """ioprio_get(2) of this thread: class and level, 0 if none was ever set, or it cannot be
    known."""
    return max(0, int(_libc.syscall(ctypes.c_long(_IOPRIO_GET), _IOPRIO_WHO_PROCESS, 0)))


def reset_ioprio() -> None:
    """ioprio_set(2): none, which goes by the nice value. Raises `OSError`."""
    if _libc.syscall(ctypes.c_long(_IOPRIO_SET), _IOPRIO_WHO_PROCESS, 0, 0) < 0:
        _raise_errno()


def memory_policy() -> int:
    """get_mempolicy(2): this thread's NUMA policy, 0 if it is the default or cannot be known."""
    mode = ctypes.c_int()
    words = (ctypes.byref(mode), None, ctypes.c_ulong(0), None, ctypes.c_ulong(0))
    return 0 if _libc.syscall(ctypes.c_long(_GET_MEMPOLICY), *words) < 0 else mode.value


def reset_memory_policy() -> None:
    """set_mempolicy(2): the default. Raises `OSError`."""
    if _libc.syscall(ctypes.c_long(_SET_MEMPOLICY), 0, None, ctypes.c_ulong(0)) < 0:
        _raise_errno()


def reset_personality() -> bool:
    """personality(2): Linux's own, from the next exec(2) on. Whether it was another. Raises
    `OSError`."""
    before = _libc.personality(_PERSONALITY_ASK)
    if before in (_PER_LINUX, -1):
        return False
    if _libc.personality(_PER_LINUX) < 0:
        _raise_errno()
    return True


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), of which Python knows no modes."""
    if _libc.fallocate(descriptor, mode, offset, length) < 0:
        _raise_errno()


def syncfs(descriptor: int) -> None:
    """syncfs(2): all of the file system that a file is on."""
    if _libc.syncfs(descriptor) < 0:
        _raise_errno()


def forbid_core_dumps() -> None:
    """A core dump would take keys, and pages that others have swapped out, to a disk."""
    prctl(PR_SET_DUMPABLE, 0)


def mlockall(flags: int) -> None:
    """mlockall(2)."""
    if _libc.mlockall(flags) < 0:
        _raise_errno()


def mallopt(option: int, value: int) -> None:
    """mallopt(3)."""
    if not _libc.mallopt(option, value):
        raise OSError(0, f"mallopt({option}, {value}) was refused")


def malloc(size_bytes: int) -> int:
    """malloc(3): an address that must be given to `free`."""
    address: int | None = _libc.malloc(size_bytes)
    if address is None:
        raise MemoryError
    return address


def free(address: int) -> None:
    """free(3)."""
    _libc.free(address)


def malloc_trim(keep_bytes: int) -> None:
    """malloc_trim(3): give back what is free in whole pages; at the end of the heap, all but
    `keep_bytes`."""
    _libc.malloc_trim(keep_bytes)


class _Mallinfo2(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    )


_libc.mallinfo2.restype = _Mallinfo2


def malloced_bytes() -> int:
    """What malloc has given out and not got back: mallinfo2(3), of all arenas and of what is
    mapped."""
    figures = _libc.mallinfo2()
    return int(figures.uordblks + figures.hblkhd)


def program_break() -> int:
    """The end of the heap: sbrk(0)."""
    address: int = _libc.sbrk(0)
    return address


def fill(address: int, size_bytes: int) -> None:
    """Touch memory by writing zeros."""
    ctypes.memset(address, 0, size_bytes)


def write_byte(address: int, value: int) -> None:
    """Write one byte of this process's memory."""
    ctypes.memset(address, value, 1)


def read(address: int, size_bytes: int) -> bytes:
    """A copy of this process's memory."""
    return ctypes.string_at(address, size_bytes)


def populate(memory: memoryview) -> None:
    """Fault in page-aligned memory for writing, without changing what it holds; `OSError` if there
    is not enough."""
    if _libc.madvise(address(memory), len(memory), MADV_POPULATE_WRITE) < 0:
        _raise_errno()


def discard(memory: memoryview) -> None:
    """Give page-aligned private memory back to the system, locked or not; it is zero when it is
    touched again. Raises `OSError` before Linux 5.18."""
    if _libc.madvise(address(memory), len(memory), MADV_DONTNEED_LOCKED) < 0:
        _raise_errno()


def populate_range(start: int, stop: int, *, write: bool) -> None:
    """Fault in whole pages by address; writing breaks copy-on-write. Raises `OSError`."""
    if _libc.madvise(start, stop - start, MADV_POPULATE_WRITE if write else MADV_POPULATE_READ) < 0:
        _raise_errno()


def map_shared_over(start: int, stop: int, descriptor: int, offset: int) -> None:
    """Put a file of memory, from `offset` on, in the place of whole pages, by address. Raises
    `OSError`."""
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED
    if _libc.mmap(start, stop - start, access, flags, descriptor, offset) != start:
        _raise_errno()


def drop_range(start: int, stop: int) -> None:
    """Let go of whole pages by address: what is a file's is read again when it is touched, all else
    is lost. Raises `OSError`, and lets go of nothing, if they are locked."""
    if _libc.madvise(start, stop - start, MADV_DONTNEED) < 0:
        _raise_errno()


def resident_share(memory: memoryview) -> float:
    """Which share of page-aligned memory is in RAM, by mincore(2)."""
    start = address(memory)
    return resident_share_of_range(start, start + len(memory))


def resident_share_of_range(start: int, stop: int) -> float:
    """The same, by address."""
    pages = page_end(stop - start) // KERNEL_PAGE_BYTES
    resident = ctypes.create_string_buffer(pages)
    if _libc.mincore(start, stop - start, resident) < 0:
        _raise_errno()
    return (pages - resident.raw[:pages].count(0)) / pages


def address(memory: memoryview | mmap.mmap) -> int:
    """Where writable memory lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def populate_stack(size_bytes: int) -> bool:
    """Fault in the calling thread's stack, from its top, for `size_bytes` or all that there is.
    False where that cannot be.

    It cannot for a process's first thread, whose stack grows as it is used.
    """
    attributes = ctypes.create_string_buffer(_PTHREAD_ATTR_BYTES)
    if _libc.pthread_getattr_np(_libc.pthread_self(), attributes):
        return False
    lowest, length = ctypes.c_size_t(), ctypes.c_size_t()
    _libc.pthread_attr_getstack(attributes, ctypes.byref(lowest), ctypes.byref(length))
    _libc.pthread_attr_destroy(attributes)
    top = lowest.value + length.value
    start = page_start(max(lowest.value, top - size_bytes))
    return not _libc.madvise(start, top - start, MADV_POPULATE_WRITE)
