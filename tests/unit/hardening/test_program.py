"""Which mappings are the program's."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from zcache.hardening import program
from zcache.linux import memory

MAPS = """\
7f0000000000-7f0000010000 r-xp 00000000 08:01 123       /srv/my swap/.venv/lib/_block.cpython-311-x86_64-linux-gnu.so
7f0000010000-7f0000012000 rw-p 00000000 00:00 0 
7f0000020000-7f0000030000 r-xp 00000000 08:01 124       /srv/libc.so.6 of mine/other.so
7f0000030000-7f0000031000 rw-p 00000000 00:00 0 
"""  # noqa: W291 (as the kernel writes it)


def test_an_object_is_known_by_its_name_in_a_folder_with_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _path: MAPS)
    assert [*program.mappings(lambda _start: 0x7F0000012000)] == [
        (0x7F0000000000, 0x7F0000010000, False),
        (0x7F0000010000, 0x7F0000012000, True),
    ]


@pytest.mark.parametrize("end", [0x7F0000010000, 0x7F0000011000])
def test_what_lies_behind_an_object_is_not_all_its_own(end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel puts other mappings there, and joins those that are alike."""
    monkeypatch.setattr(Path, "read_text", lambda _path: MAPS)
    own = [(0x7F0000010000, end, True)] if end > 0x7F0000010000 else []
    assert [*program.mappings(lambda _start: end)] == [(0x7F0000000000, 0x7F0000010000, False), *own]


#: Behind the dynamic linker there is room.
BEHIND_THE_LINKER = """
import ctypes, mmap
from pathlib import Path
from zcache.hardening import program
from zcache.linux import memory

def spans():
    return [(start, stop) for start, stop, _ in program.mappings()]

before = spans()
lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
start = next(int(line[0].partition("-")[0], 16) for line in lines if "/ld-linux" in line[-1])
end = program.end_of_object(start)
assert any(stop == end for _, stop in before), "its end is not among them"
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
MAP_FIXED_NOREPLACE = 0x100000
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
assert libc.mmap(end, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == end
assert spans() == before, "what lies behind it is taken for its own"
print("right")
"""


def test_what_is_no_object_is_not_believed() -> None:
    """Its words would be taken for offsets, and read there."""
    with mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
        start = memory.address(mapped)
        mapped[:64] = b"\x01" * 64
        mapped[32:40] = (4096).to_bytes(8, "little")  # where its program headers would be, of 256 bytes each
        mapped[4096:4100] = (1).to_bytes(4, "little")
        mapped[4136:4144] = (1 << 30).to_bytes(8, "little")
        mapped[54:58] = b"\x00\x01\x01\x00"
        assert program.end_of_object(start) == start


def test_where_an_object_ends_is_what_it_says_itself() -> None:
    command = [sys.executable, "-c", BEHIND_THE_LINKER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "right\n", done.stderr
