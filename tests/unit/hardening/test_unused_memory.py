"""Memory that is mapped anew, as shared: which that may be, and that each stretch is one of its
own."""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from zcache.hardening import unused_memory
from zcache.hardening.unused_memory import BUFFER_BYTES, MARGIN_BYTES, release_unused_bss
from zcache.linux import memory

MIB = 1 << 20
BSS_BYTES = 2 * BUFFER_BYTES + 4 * MIB

MAPS = """\
555500000000-555500010000 r-xp 00000000 08:01 123       /usr/sbin/nbdkit
555500010000-555500012000 rw-p 00010000 08:01 123       /usr/sbin/nbdkit
555500012000-55550c012000 rw-p 00000000 00:00 0 
7f0000000000-7f0000010000 r-xp 00000000 08:01 124       /usr/lib/other.so
7f0000010000-7f0000012000 rw-p 00000000 00:00 0 
"""  # noqa: W291 (as the kernel writes it)


@pytest.fixture
def bss(monkeypatch: pytest.MonkeyPatch) -> Iterator[mmap.mmap]:
    """That of a program, private and never touched."""
    with mmap.mmap(-1, BSS_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
        mapped.madvise(mmap.MADV_NOHUGEPAGE)
        start = memory.address(mapped)
        monkeypatch.setattr(unused_memory, "bss_of", lambda _program: [(start, start + BSS_BYTES)])
        yield mapped


def shared(mapped: mmap.mmap) -> list[tuple[int, int]]:
    """Which stretches of it are mapped anew."""
    start = memory.address(mapped)
    found = re.findall(r"^(\w+)-(\w+) rw-s .*zcache-unused", Path("/proc/self/maps").read_text(), re.MULTILINE)
    spans = [(int(low, 16) - start, int(high, 16) - start) for low, high in found]
    return [(low, high) for low, high in spans if 0 <= low < BSS_BYTES]


def test_what_is_written_in_one_stretch_shows_in_no_other(bss: mmap.mmap) -> None:
    """All of them were the beginning of one file."""
    bss[8 * MIB] = 1
    release_unused_bss()
    spans = shared(bss)
    assert len(spans) > 2
    for number, (start, _) in enumerate(spans):
        bss[start] = 10 + number
    assert [bss[start] for start, _ in spans] == [*range(10, 10 + len(spans))]
    assert bss[8 * MIB] == 1


def test_variables_beside_and_between_the_buffers_stay_private(bss: mmap.mmap) -> None:
    """On pages that are not touched yet: a lock there would be one lock for a server and its
    heir."""
    bss[8 * MIB] = 1
    release_unused_bss()
    stretches = [
        (0, 8 * MIB),
        (8 * MIB + mmap.PAGESIZE, BUFFER_BYTES),
        (BUFFER_BYTES, 2 * BUFFER_BYTES),
        (2 * BUFFER_BYTES, BSS_BYTES),
    ]
    assert shared(bss) == [(start + MARGIN_BYTES, stop - MARGIN_BYTES) for start, stop in stretches]


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (0x55550C012000, [(0x555500012000, 0x55550C012000)]),
        (0x555508012000, [(0x555500012000, 0x555508012000)]),  # the rest is another's
        (0x555500000000, []),  # no object begins there
    ],
)
def test_the_bss_is_what_the_program_says_itself(
    end: int, found: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _path: MAPS)
    monkeypatch.setattr(unused_memory, "end_of_object", lambda _start: end, raising=False)
    assert [*unused_memory.bss_of("nbdkit")] == found
