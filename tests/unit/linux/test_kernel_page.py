"""Kernels with pages of 16 and 64 KiB, as arm64 has them: what is mapped, populated and given back
is whole pages of theirs, and what shares a page with something else is left alone. (On such a
machine: tests/vm/arm64.py.)"""

import os
import random
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.pages import any_page, raw_page
from tests.support.stores import PAGE_BYTES, get, put, small_store, store_with_image
from tests.support.tiers import MemoryTier
from zcache.allocators.choice import ALLOCATORS
from zcache.budget.breathing import Breathing
from zcache.budget.budget import SWEEPS, Budget
from zcache.budget.pressure import PressureGauge
from zcache.clean.disk_file import DiskFile
from zcache.control.check import check
from zcache.errors import SwapError
from zcache.image.image import Geometry, Image, new_descriptor
from zcache.image.signs import HEADER_BYTES, Signs
from zcache.linux import libc, memory
from zcache.linux.kernel_page import page_end, page_start
from zcache.pageframes.ram import Ram
from zcache.pageframes.slots import slots_of
from zcache.swap.handshake import Export

KIB = 1 << 10
PAGE_SIZES = [4 * KIB, 16 * KIB, 64 * KIB]
GEOMETRY = Geometry(1000, 100, 300, 4 * KIB, "yes", "zbud", None)
#: What a server of version 0.1.0 lays out for that.
SPANS = {
    "entries": (4096, 8000),
    "home": (12288, 1204),
    "below": (16384, 1204),
    "seal": (20480, 4816),
    "birth": (28672, 2408),
    "ram": (32768, 409600),
}


def spans_of(page_bytes: int) -> tuple[dict[str, tuple[int, int]], int]:
    descriptor = new_descriptor()
    image = Image.new(descriptor, GEOMETRY, page_bytes)
    assert os.fstat(descriptor).st_size == image.size_bytes
    os.close(descriptor)
    return image.spans, image.size_bytes


def test_with_pages_of_4_kib_the_layout_is_what_it_always_was() -> None:
    """A running swap is taken over by newer code, which has to find everything where it was."""
    assert spans_of(4 * KIB) == (SPANS, 442368)


@pytest.mark.parametrize("page_bytes", PAGE_SIZES)
def test_each_section_of_an_image_has_pages_of_its_own(page_bytes: int) -> None:
    spans, size_bytes = spans_of(page_bytes)
    assert [name for name, _ in sorted(spans.items(), key=lambda item: item[1])] == list(SPANS)
    end = HEADER_BYTES
    for name, (start, length) in spans.items():
        assert start % page_bytes == 0 and start >= end and length == SPANS[name][1]
        end = start + length
    assert end <= size_bytes and size_bytes % page_bytes == 0


def test_the_signs_stay_in_the_first_4_kib() -> None:
    descriptor = new_descriptor()
    Image.new(descriptor, GEOMETRY, 64 * KIB)
    assert Signs(descriptor).epoch == 1
    assert int.from_bytes(os.pread(descriptor, 8, 4 * KIB - 8), "little") == 1
    os.close(descriptor)


def test_where_pages_begin_and_end() -> None:
    assert [page_start(offset, 16384) for offset in (0, 1, 16383, 16384, 40000)] == [0, 0, 0, 16384, 32768]
    assert [page_end(offset, 16384) for offset in (0, 1, 16383, 16384, 40000)] == [0, 16384, 16384, 16384, 49152]


class Watched:
    """What is asked of a kernel with pages of `page_bytes`, which refuses (EINVAL) to do what is
    not in whole pages, or would zero a part of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, page_bytes: int) -> None:
        self.base = 0
        self.discarded: list[tuple[int, int]] = []
        fallocate, populate, discard = libc.fallocate, memory.populate, memory.discard

        def watched_fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
            if mode & libc.FALLOC_FL_PUNCH_HOLE:
                assert offset % page_bytes == 0 == length % page_bytes and length
                self.discarded.append((offset, offset + length))
            fallocate(descriptor, mode, offset, length)

        def watched_populate(part: memoryview) -> None:
            assert (memory.address(part) - self.base) % page_bytes == 0 or not self.base
            populate(part)

        def watched_discard(part: memoryview) -> None:
            start = memory.address(part) - self.base
            assert start % page_bytes == 0
            self.discarded.append((start, start + len(part)))
            discard(part)

        monkeypatch.setattr(libc, "fallocate", watched_fallocate)
        monkeypatch.setattr(memory, "populate", watched_populate)
        monkeypatch.setattr(memory, "discard", watched_discard)


def new_ram(slots: int, frame_bytes: int, page_bytes: int, has_image: bool, watched: Watched) -> Ram:
    """Of an image, or of memory that is the process's own."""
    section = None
    if has_image:
        geometry = Geometry(8, slots, slots, frame_bytes, "no", "zbud", None)
        section = Image.new(new_descriptor(), geometry, page_bytes).section("ram")
    ram = Ram(slots, frame_bytes, section, page_bytes)
    watched.base = memory.address(ram.memory)
    return ram


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize("frame_bytes", [4 * KIB, 64 * KIB])
@pytest.mark.parametrize("page_bytes", PAGE_SIZES)
def test_a_page_goes_back_with_the_last_slot_in_it_and_comes_back_with_the_first(
    page_bytes: int, frame_bytes: int, has_image: bool, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever leaves and comes back in whatever order: the bytes of all others stay what they
    are."""
    watched = Watched(monkeypatch, page_bytes)
    slots = 77  # the last page is not full
    ram = new_ram(slots, frame_bytes, page_bytes, has_image, watched)
    ram.populate(lambda: None)
    content: dict[int, bytes] = {}  # of the slots that are there

    def write(slot: int) -> None:
        content[slot] = rng.randbytes(16)
        ram.view[slot * frame_bytes : slot * frame_bytes + 16] = content[slot]
        ram.view[(slot + 1) * frame_bytes - 16 : (slot + 1) * frame_bytes] = content[slot]

    def are_whole() -> bool:
        return all(
            ram.view[slot * frame_bytes : slot * frame_bytes + 16] == data
            and ram.view[(slot + 1) * frame_bytes - 16 : (slot + 1) * frame_bytes] == data
            for slot, data in content.items()
        )

    for slot in range(slots):
        write(slot)
    for _ in range(60):
        leaving = rng.sample(sorted(content), min(rng.randrange(1, 24), len(content) - 1))
        for slot in leaving:
            del content[slot]
        ram.mark(leaving, True)
        if rng.random() < 0.3:
            ram.give_back_absent()
        else:
            ram.give_back(leaving)
        assert are_whole()
        for start in range(0, slots * frame_bytes, page_bytes):
            stop = min(start + page_bytes, slots * frame_bytes)
            is_used = any(slot in content for slot in range(start // frame_bytes, -(-stop // frame_bytes)))
            assert (memory.resident_share(ram.view[start:stop]) > 0) == is_used
        absent = sorted(set(range(slots)) - content.keys())
        coming = rng.sample(absent, min(rng.randrange(24), len(absent)))
        ram.get_back(coming)
        ram.mark(coming, False)
        assert ram.is_populated() and are_whole()
        for slot in coming:
            write(slot)
    rest = sorted(content)
    ram.mark(rest, True)
    ram.give_back(rest)
    ram.give_back_absent()
    assert memory.resident_share(ram.view) == 0.0


@pytest.mark.parametrize("allocator", ["zbud", "log"])
@pytest.mark.parametrize("page_bytes", PAGE_SIZES)
def test_a_store_loses_nothing_while_its_budget_moves_and_its_server_dies(
    page_bytes: int, allocator: str, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch, page_bytes)
    descriptor, pages = new_descriptor(), 1200
    budget_frames = 600 if allocator == "zbud" else 40
    tier = MemoryTier(1200, ALLOCATORS[allocator].frame_bytes)
    expected: dict[int, bytes] = {}
    for _server in range(3):
        after = MemoryTier(tier.slot_count, tier.frame_bytes)
        after.medium = tier.medium
        tier = after
        store, thing = store_with_image(
            descriptor, pages, budget_frames, tier, allocator=allocator, page_bytes=page_bytes
        )
        watched.base = memory.address(store.frames.memory.memory)
        budget = Budget(store.frames, store.reclaimer, store.lock, store.statistics, 20)
        budget.begin(budget_frames)
        watched.base = 0
        store.populate()
        for _ in range(12):
            for _ in range(20):
                first = rng.randrange(pages - 8)
                some = [any_page(rng) for _ in range(rng.randrange(1, 8))]
                put(store, thing, first, *some)
                expected |= dict(enumerate(some, first))
            (budget.shrink(rng.randrange(200), may_write=True) if rng.random() < 0.6 else budget.grow(300))
            for _ in range(SWEEPS[0] if rng.random() < 0.3 else 0):
                budget.sweep()
        check(store)
        for page, data in expected.items():
            assert get(store, thing, page) == data
    assert watched.discarded
    os.close(descriptor)


def test_the_smallest_area_is_ten_pages_of_the_kernels() -> None:
    Export(40 * KIB, 1).check(False, 4 * KIB)
    Export(640 * KIB, 1).check(False, 64 * KIB)
    with pytest.raises(SwapError, match="size=640K"):
        Export(636 * KIB, 1).check(False, 64 * KIB)


def test_the_kernels_own_copy_of_what_was_read_goes_in_whole_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps a page of which only a part is named."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    descriptor = os.open(tmp_path / "disk", os.O_RDONLY)
    file = DiskFile(descriptor, 1 << 20, False, 64 * KIB)
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, offset, length, _advice: asked.append((offset, length)))
    file.read(68 * KIB, memoryview(bytearray(4 * KIB)))
    file.read(60 * KIB, memoryview(bytearray(8 * KIB)))
    assert asked == [(64 * KIB, 64 * KIB), (0, 128 * KIB)]
    file.close()


def test_what_the_machine_swaps_is_counted_in_the_devices_pages(tmp_path: Path) -> None:
    """By which the budget tells whether it swaps to us, or elsewhere."""
    clock = FakeClock()
    (tmp_path / "vmstat").write_text("pswpin 10\npswpout 5\n")
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 500 kB\n")
    store = small_store(64)
    budget = Budget(store.frames, store.reclaimer, store.lock, store.statistics, 2)
    gauge = PressureGauge(clock, tmp_path / "psi", tmp_path / "meminfo")
    breathing = Breathing(store, budget, gauge, clock, tmp_path / "vmstat", page_bytes=16 * KIB)
    assert breathing.look().swapped == 60


def test_a_page_of_the_device_is_4_kib_everywhere(rng: random.Random) -> None:
    store, thing = store_with_image(new_descriptor(), 64, 64, MemoryTier(8), page_bytes=64 * KIB)
    page = raw_page(rng)
    put(store, thing, 3, page)
    assert get(store, thing, 3) == page and len(page) == PAGE_BYTES == 4096
    assert slots_of(64) * 4096 == len(store.frames.ram_view)
