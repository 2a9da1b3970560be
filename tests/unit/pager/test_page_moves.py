"""What is done to pages of a region, in both builds."""

import ctypes
import errno
import mmap
import os
import random
import shutil
import sys
import threading
import time
import types
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import zcache.pager
from tests.support.regions import needs_regions
from zcache.linux import memory, userfaultfd
from zcache.linux.files import data_extents
from zcache.pager.page_moves import PageMoves, PythonMoves, choose, runs
from zcache.pager.region_file import new_memfd

pytestmark = needs_regions

PAGES = 64
WRONG = "|".join(os.strerror(number) for number in (errno.ENOENT, errno.EBADF, errno.EIO, errno.EINVAL))


def builds() -> list[PageMoves]:
    made = choose()
    if isinstance(made, PythonMoves):
        assert os.environ.get("ZCACHE_PAGE_LOOP") == "python" or not shutil.which("cc"), "not built: scripts/setup"
        return [made]
    return [PythonMoves(), made]


class Client(NamedTuple):
    descriptor: int
    memfd: int
    start: int
    memory: mmap.mmap


@pytest.fixture
def client() -> Iterator[Client]:
    """Memory of this process, registered."""
    memfd, descriptor = new_memfd(PAGES * 4096), userfaultfd.open_descriptor()
    userfaultfd.handshake(descriptor, 0)
    mapping = mmap.mmap(memfd, PAGES * 4096)
    start = memory.address(mapping)
    mode = userfaultfd.UFFDIO_REGISTER_MODE_MISSING | userfaultfd.UFFDIO_REGISTER_MODE_WP
    userfaultfd.register(descriptor, start, PAGES * 4096, mode)
    yield Client(descriptor, memfd, start, mapping)
    os.close(descriptor)
    os.close(memfd)


def in_file(client: Client) -> list[int]:
    extents = data_extents(client.memfd, 0, PAGES * 4096)
    return [page for start, stop in extents for page in range(start >> 12, stop >> 12)]


@pytest.mark.parametrize("moves", builds(), ids=lambda moves: getattr(moves, "__name__", "python"))
def test_pages_leave(moves: PageMoves, client: Client, rng: random.Random) -> None:
    contents = [rng.randbytes(4096) for _ in range(PAGES)]
    for page, content in enumerate(contents):
        os.pwrite(client.memfd, content, page << 12)
    chosen = array("I", sorted(rng.sample(range(PAGES), 20)))
    out = memoryview(mmap.mmap(-1, 20 * 4096))
    moves.protect_and_read(client.descriptor, client.memfd, client.start, chosen, out)
    assert bytes(out) == b"".join(contents[page] for page in chosen)
    done: list[int] = []

    def write() -> None:
        ctypes.memset(client.start + (chosen[0] << 12), 1, 1)  # without Python's lock
        done.append(1)

    thread = threading.Thread(target=write)  # which waits, as the page is protected
    thread.start()
    (fault,) = userfaultfd.faults_in(moves.read_faults(client.descriptor, 10.0))
    assert fault.address - client.start >> 12 == chosen[0] and fault.flags & userfaultfd.UFFD_PAGEFAULT_FLAG_WP
    assert not done
    moves.punch(client.memfd, chosen[1:])
    assert in_file(client) == [page for page in range(PAGES) if page not in chosen[1:]]
    moves.allow_writes(client.descriptor, client.start, chosen)
    thread.join(10)
    assert done == [1] and client.memory[chosen[0] << 12] == 1


@pytest.mark.parametrize("moves", builds(), ids=lambda moves: getattr(moves, "__name__", "python"))
def test_pages_come(moves: PageMoves, client: Client, rng: random.Random) -> None:
    contents = [rng.randbytes(4096) for _ in range(8)]
    source = mmap.mmap(-1, 8 * 4096)
    source[:] = b"".join(contents)
    os.pwrite(client.memfd, bytes(4096), 5 << 12)  # by another way; it stays as it is
    read: list[bytes] = []

    def touch(page: int) -> None:
        out = ctypes.create_string_buffer(4096)
        ctypes.memmove(out, client.start + (page << 12), 4096)  # without Python's lock
        read.append(out.raw)

    thread = threading.Thread(target=touch, args=(7,))
    thread.start()
    (fault,) = userfaultfd.faults_in(moves.read_faults(client.descriptor, 10.0))
    assert fault.address - client.start >> 12 == 7
    moves.fill(client.descriptor, client.start + (2 << 12), memory.address(source), 8 << 12)
    thread.join(10)
    assert read == [contents[5]]
    contents[3] = bytes(4096)
    assert client.memory[2 << 12 : 10 << 12] == b"".join(contents) and in_file(client) == list(range(2, 10))


@pytest.mark.parametrize("moves", builds(), ids=lambda moves: getattr(moves, "__name__", "python"))
def test_how_they_fail(moves: PageMoves, client: Client) -> None:
    room = mmap.mmap(-1, 4 * 4096)
    out = memoryview(room)
    outside = array("I", [PAGES - 1, PAGES])
    for call in (
        lambda: moves.protect_and_read(client.descriptor, client.memfd, client.start, outside, out),
        lambda: moves.protect_and_read(9999, client.memfd, client.start, array("I", [1]), out),
        lambda: moves.allow_writes(client.descriptor, client.start, outside),
        lambda: moves.punch(9999, array("I", [1])),
        lambda: moves.fill(client.descriptor, client.start + (PAGES << 12), memory.address(room), 4096),
        lambda: moves.fill(9999, client.start, memory.address(room), 4096),
        lambda: moves.read_faults(9999, 0.0),
    ):
        with pytest.raises(OSError, match=WRONG):
            call()
    for nothing in (array("I"), array("I")):
        moves.punch(client.memfd, nothing)
        moves.allow_writes(client.descriptor, client.start, nothing)
    begin = time.monotonic()
    assert moves.read_faults(client.descriptor, 0.0) == b"" == moves.read_faults(client.descriptor, 0.05)
    assert time.monotonic() - begin >= 0.05


def test_what_was_compiled_of_older_code_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZCACHE_PAGE_LOOP", raising=False)
    older = types.ModuleType("zcache.pager._page_moves")
    older.punch = lambda *_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, older.__name__, older)
    monkeypatch.setattr(zcache.pager, "_page_moves", older, raising=False)
    assert isinstance(choose(), PythonMoves)


def test_runs() -> None:
    assert list(runs(array("I"))) == []
    assert list(runs(array("I", [7]))) == [(7, 1)]
    assert list(runs(array("I", [1, 2, 3, 5, 8, 9]))) == [(1, 3), (5, 1), (8, 2)]
