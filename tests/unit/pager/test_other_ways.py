"""What else is done with memory: it works, or is refused in a line."""

import ctypes
import mmap
import multiprocessing
import pickle
import random
import socket
import threading
from pathlib import Path

import pytest

from tests.support.regions import MIB, needs_regions
from zcache.linux import memory
from zcache.linux.libc import LIBC
from zcache.pager.region import Region

pytestmark = needs_regions


@pytest.fixture
def page(rng: random.Random) -> bytes:
    return rng.randbytes(4096)


def filled(page: bytes) -> Region:
    """Four times its limit."""
    region = Region("8M", "2M")
    for at in range(0, len(region), 4096):
        region.buffer[at : at + 4096] = page
    return region


def test_a_region_is_not_pickled_and_what_is_in_it_is(page: bytes) -> None:
    numpy = pytest.importorskip("numpy")
    with filled(page) as region:
        with pytest.raises(TypeError, match="cannot be pickled: pickle what is in it"):
            pickle.dumps(region)
        array = region.array((1024, 1024), "u8")
        again = pickle.loads(pickle.dumps(array))  # noqa: S301
        assert again.shape == array.shape and bytes(memoryview(again[:1].reshape(-1)).cast("B")[:4096]) == page
        del array
        assert isinstance(again, numpy.ndarray)


def test_an_exception_comes_through_with_arrays_that_are_left(page: bytes) -> None:
    pytest.importorskip("numpy")
    with pytest.raises(ZeroDivisionError), filled(page) as region:
        array = region.array((1024,), "u8")
        _ = 1 // int(array[0] * 0)
    del array
    region.close()
    assert region.resident_bytes == 0


def test_another_process_is_given_copies(page: bytes) -> None:
    """By `spawn`: a child by fork(2) has nothing of the region (test_region.py)."""
    with filled(page) as region, multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(hash, (bytes(region.buffer[:4096]),)) is not None
        assert pool.apply(bytes.count, (bytes(region.buffer[:8192]), page)) == 2


def test_locked_memory_is_brought_once_and_leaves_all_the_same(page: bytes) -> None:
    with filled(page) as region:
        at = memory.address(region.buffer)
        assert LIBC.mlock(ctypes.c_void_p(at), ctypes.c_size_t(len(region))) == 0
        assert region.resident_bytes <= 2 * MIB
        assert region.buffer == page * (len(region) // 4096)
        assert LIBC.munlock(ctypes.c_void_p(at), ctypes.c_size_t(len(region))) == 0


def test_memory_cannot_be_moved_or_resized_under_those_who_see_it(page: bytes) -> None:
    with filled(page) as region:
        mapping = region.buffer.obj
        assert isinstance(mapping, mmap.mmap)
        with pytest.raises(BufferError):
            mapping.resize(16 * MIB)
        with pytest.raises(BufferError):
            mapping.close()
        assert region.buffer[-4096:] == page


def test_advice_to_the_kernel_itself_loses_nothing(page: bytes) -> None:
    """madvise(2) by somebody who does not know of the pager: the pages stay in the file."""
    with filled(page) as region:
        mapping = region.buffer.obj
        assert isinstance(mapping, mmap.mmap)
        for advice in (mmap.MADV_DONTNEED, mmap.MADV_HUGEPAGE, mmap.MADV_RANDOM, mmap.MADV_WILLNEED):
            mapping.madvise(advice)
            assert region.buffer == page * (len(region) // 4096)
        assert region.resident_bytes <= 2 * MIB


def test_pages_that_the_client_removes_by_itself_are_zeros(page: bytes) -> None:
    with filled(page) as region:
        mapping, length = region.buffer.obj, MIB
        assert isinstance(mapping, mmap.mmap)
        at = len(region) - length  # the last that were written: resident
        mapping.madvise(mmap.MADV_REMOVE, at, length)
        assert region.check()["removed_pages"] > 0
        assert region.buffer[at:] == bytes(length)
        assert region.buffer[:at] == page * (at // 4096)
        mapping.madvise(mmap.MADV_REMOVE)  # what has left stays: the file has nothing of it to remove
        assert region.buffer.tobytes().count(page) >= (at - 2 * MIB) // 4096
        region.buffer[:] = page * (len(region) // 4096)
        assert region.buffer == page * (len(region) // 4096)


def test_system_calls_read_and_write_it(page: bytes, tmp_path: Path) -> None:
    with filled(page) as region:
        file = tmp_path / "file"
        file.write_bytes(region.buffer)
        assert file.read_bytes() == page * (len(region) // 4096)
        file.write_bytes(bytes(range(256)) * (len(region) // 256))
        with file.open("rb") as opened:
            assert opened.readinto(region.buffer) == len(region)
        assert region.buffer == file.read_bytes()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            sender = threading.Thread(target=ours.sendall, args=(page * 1024,))
            sender.start()
            assert theirs.recv_into(region.buffer[: 4 * MIB], 4 * MIB, socket.MSG_WAITALL) == 4 * MIB
            sender.join()
        assert region.buffer[: 4 * MIB] == page * 1024
