"""The compiled page loop is stopped at every instruction: what it would leave there, if it were
killed.

A child appends a run and publishes its entries, in memory that we share; ptrace(2) runs it one
instruction at a time, and we look at the memory after each.
"""

import ctypes
import errno
import mmap
import os
import random
import signal

import pytest

from tests.support.page_loops import page_loops
from zcache.allocators.log_frame import COUNT_AT, FIRST_RECORD, FRAME_BYTES, open_head
from zcache.page_loop import PageLoop
from zcache.pages.codec import LZ4
from zcache.pages.entry import zpage_tag

TRACEME, SINGLESTEP = 0, 9  # <sys/ptrace.h>
SIZES = [700, 1300, 64, 3000]

pytestmark = pytest.mark.skipif(len(page_loops()) < 2, reason="NOT run: no C compiler, and so no compiled page loop")

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def append_and_publish(loop: PageLoop, ram: mmap.mmap, table: mmap.mmap, data: bytes) -> None:
    """In the child, between two SIGSTOPs."""
    live, weight = memoryview(bytearray(4)).cast("H"), memoryview(bytearray(8)).cast("I")
    appender = loop.appender(ram, live, weight)
    head = appender.new_head()
    open_head(head, 1, 1)
    tags, entries = [zpage_tag(LZ4, size) for size in SIZES], list[int]()
    words = memoryview(table).cast("Q")
    append, publish = appender.append, loop.publish
    if libc.ptrace(TRACEME, 0, None, None) < 0:
        os._exit(ctypes.get_errno())
    os.kill(os.getpid(), signal.SIGSTOP)
    append(head, data, tags, entries, 9)
    publish(words, 2, entries)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)


def test_words_are_whole_and_come_after_what_they_name(rng: random.Random) -> None:
    ram, table = mmap.mmap(-1, 2 * FRAME_BYTES), mmap.mmap(-1, 4096)
    data = rng.randbytes(sum(SIZES))
    places, place = [], 0
    for size in SIZES:
        places.append(zpage_tag(LZ4, size) | place << 31 | 1)
        place += size
    child = os.fork()
    if not child:
        append_and_publish(page_loops()[1], ram, table, data)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == errno.EPERM:
        pytest.skip("NOT run: ptrace is forbidden here")
    states: list[tuple[int, ...]] = []  # those that were seen, one after the other
    try:
        assert os.WIFSTOPPED(status)
        while True:
            assert libc.ptrace(SINGLESTEP, child, None, None) == 0
            _, status = os.waitpid(child, 0)
            assert os.WIFSTOPPED(status)
            entries = [int.from_bytes(table[at : at + 8], "little") for at in range(16, 16 + 8 * len(SIZES), 8)]
            state = (
                ram[FRAME_BYTES : FRAME_BYTES + len(data)] == data,
                int.from_bytes(ram[FRAME_BYTES + FIRST_RECORD :][:8], "little"),
                int.from_bytes(ram[FRAME_BYTES + COUNT_AT :][:8], "little"),
                *entries,
            )
            if not states or states[-1] != state:
                states.append(state)
            if os.WSTOPSIG(status) == signal.SIGSTOP:
                break
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    record, nothing = 3 << 56 | 9, [0] * len(SIZES)
    wanted = [(False, 0, 0, *nothing), (True, 0, 0, *nothing), (True, record, 0, *nothing), (True, record, 1, *nothing)]
    wanted += [(True, record, 1, *places[:count], *nothing[count:]) for count in range(1, len(SIZES) + 1)]
    assert states == wanted
