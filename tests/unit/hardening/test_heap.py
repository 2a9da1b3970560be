"""The heap of a process of its own, as malloc leaves it."""

import subprocess
import sys

PREPARE = """
from zcache.hardening import heap
from zcache.linux import libc

MIB = 1 << 20

def is_in_the_heap(size_bytes):
    "And it was large enough."
    end = libc.program_break()
    address = libc.malloc(size_bytes)
    is_inside = end - (64 << 20) < address < end == libc.program_break()
    libc.free(address)
    assert libc.program_break() == end
    return is_inside
"""

FIXED = """
heap.fix_heap()
assert heap.heap_is_fixed()
assert is_in_the_heap(3 * MIB), "what requests need is there"
assert not is_in_the_heap(16 * MIB), "what others send is mapped apart"
"""

#: In an heir: as large as before, and little of it in memory.
GIVEN_BACK = """
from pathlib import Path

def resident_kib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4

heap.fix_heap()
before, end = resident_kib(), libc.program_break()
heap.give_back_free_memory()
assert libc.program_break() == end and resident_kib() < before - (3 << 10), (before, resident_kib())
assert is_in_the_heap(3 * MIB) and not is_in_the_heap(16 * MIB)
"""


def run(program: str) -> None:
    environment = {"PYTHONMALLOC": "malloc", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-P", "-c", PREPARE + program], env=environment, check=True, timeout=60)


def test_what_requests_need_is_in_the_heap_and_what_is_larger_is_not() -> None:
    run(FIXED)


def test_an_heir_gives_back_what_is_free_and_has_it_in_the_heap_again() -> None:
    run(GIVEN_BACK)
