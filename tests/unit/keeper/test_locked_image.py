"""What the keeper faults in of an image that grows."""

import mmap
import os
import random

import pytest

from zcache.image.image import new_descriptor
from zcache.keeper.locked_image import LockedImage, _without
from zcache.linux import libc, memory


def test_what_was_known_is_left_out() -> None:
    assert list(_without([], [])) == []
    assert list(_without([(0, 8)], [])) == [(0, 8)]
    assert list(_without([(0, 8)], [(0, 8)])) == []
    assert list(_without([(0, 9), (12, 20)], [(0, 2), (4, 5), (12, 14)])) == [(2, 4), (5, 9), (14, 20)]
    assert list(_without([(3, 4), (6, 9)], [(8, 9)])) == [(3, 4), (6, 8)]


def test_every_page_is_in_memory_after_each_look(rng: random.Random) -> None:
    """And so locked, in a process that locks what it maps."""
    page, count = mmap.PAGESIZE, 600
    image = LockedImage()
    os.ftruncate(image.descriptor, count * page)
    written: set[int] = set()
    for _ in range(40):
        for number in (rng.randrange(count) for _ in range(rng.randrange(20))):
            os.pwrite(image.descriptor, b"x", number * page)
            written.add(number)
        image.keep()
        assert image.memory is not None or not written
        address = memory.address(image.memory) if image.memory else 0
        mapped = mapped_pages(address, count)
        assert written <= mapped, sorted(written - mapped)


def test_a_page_that_cannot_be_had_keeps_no_other_from_being_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    page = mmap.PAGESIZE
    image = LockedImage()
    os.ftruncate(image.descriptor, 9 * page)
    for number in (0, 4, 8):
        os.pwrite(image.descriptor, b"x", number * page)
    populate, tried = memory.populate_range, []

    def fail_at_second(start: int, stop: int, *, write: bool) -> None:
        tried.append(start)
        if len(tried) == 2:
            raise OSError(133, "Memory page has hardware error")
        populate(start, stop, write=write)

    with monkeypatch.context() as patch:
        patch.setattr(memory, "populate_range", fail_at_second)
        with pytest.raises(OSError, match="hardware"):
            image.keep()
        assert image.memory
        assert {0, 8} <= mapped_pages(memory.address(image.memory), 9)
        image.keep()
    assert {0, 4, 8} <= mapped_pages(memory.address(image.memory), 9)


def mapped_pages(address: int, count: int) -> set[int]:
    """By /proc/self/pagemap: bit 63 of each page's word says that it is in this process's page
    table."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123
        pagemap.seek(address // mmap.PAGESIZE * 8)
        words = memoryview(pagemap.read(8 * count)).cast("Q")
    return {number for number, word in enumerate(words) if word >> 63}


def test_an_image_does_not_shrink_under_those_who_have_it_mapped() -> None:
    descriptor = new_descriptor()
    os.ftruncate(descriptor, 2 * mmap.PAGESIZE)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, mmap.PAGESIZE)
    os.close(descriptor)


def test_a_damaged_page_keeps_nothing_behind_it_from_being_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    page, count, bad = mmap.PAGESIZE, 100, 37
    image = LockedImage()
    os.ftruncate(image.descriptor, count * page)
    os.pwrite(image.descriptor, b"x" * count * page, 0)
    populate = memory.populate_range

    def fail_at_one(start: int, stop: int, *, write: bool) -> None:
        assert image.memory
        damaged = memory.address(image.memory) + bad * page
        if start <= damaged < stop:
            if start < damaged:
                populate(start, damaged, write=write)
            raise OSError(libc.EHWPOISON, "Memory page has hardware error")
        populate(start, stop, write=write)

    with monkeypatch.context() as patch:
        patch.setattr(memory, "populate_range", fail_at_one)
        with pytest.raises(OSError, match="hardware"):
            image.keep()
    assert image.memory
    assert mapped_pages(memory.address(image.memory), count) >= set(range(count)) - {bad}
