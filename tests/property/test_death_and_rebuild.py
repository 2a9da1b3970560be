"""A server that dies at any line of any operation, and the one that goes on with its image.

While an operation runs, a trace function counts the lines that are executed in the store's own
modules, and at a chosen one copies the image and the medium as they are then: what SIGKILL there
would leave. A store is rebuilt from the copy. Its books balance; every page that the operation was
not about is what it was; each of those that it was about is what it was before, what it will be
after, or lost, which the client, who had no answer, mends by asking again.
"""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import zcache
from tests.support.page_loops import page_loops
from tests.support.pages import any_page
from tests.support.stores import PAGE_BYTES, get, put, store_with_image
from tests.support.tiers import MemoryTier
from zcache.allocators.choice import ALLOCATORS
from zcache.control.check import check
from zcache.errors import PageLost
from zcache.image.image import new_descriptor
from zcache.page_loop import PageLoop
from zcache.page_loop.reference import PythonLoop
from zcache.pageframes.queues import Queue
from zcache.pageframes.transitions import drop_oldest_clean
from zcache.pages.tmem import TmemObject
from zcache.store.store import Store

PAGES = 40
PYTHON_LOOP = PythonLoop()
PACKAGE = str(Path(zcache.__file__).parent)


def copy_image(descriptor: int) -> int:
    """Another memfd with the same bytes, and the same holes."""
    other = new_descriptor()
    os.ftruncate(other, os.fstat(descriptor).st_size)
    start = 0
    while True:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError:
            return other
        stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        os.pwrite(other, os.pread(descriptor, stop - start, start), start)
        start = stop


class Death:
    """Counts lines of the store's modules while it is entered; calls `at_death` at line number
    `line`."""

    def __init__(self, line: int, at_death: Callable[[], None]) -> None:
        self.lines = 0
        self._line = line
        self._at_death = at_death

    def __enter__(self) -> "Death":
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._line:
                sys.settrace(None)
                self._at_death()
                sys.settrace(self._trace)
        return self._trace


class World:
    """A store over an image, and what its pages should be. `None` is a lost page."""

    def __init__(self, rng: random.Random, encrypt: str, allocator: str) -> None:
        self.rng = rng
        self.encrypt = encrypt
        self.allocator = allocator
        chosen = ALLOCATORS[allocator]
        self.budget_frames = rng.randrange(4, 16) if allocator == "zbud" else rng.randrange(7, 12)
        self.tier = MemoryTier(max(chosen.frames_for(PAGES) - self.budget_frames, 0) + 8, chosen.frame_bytes)
        self.descriptor = new_descriptor()
        self.store, self.thing = self.over(self.descriptor, self.tier)
        self.model: dict[int, bytes | None] = {}

    def over(self, descriptor: int, tier: MemoryTier, loop: PageLoop = PYTHON_LOOP) -> tuple[Store, TmemObject]:
        """With the page loop in Python, which can be stopped at any line."""
        recompress = "zstd:1" if self.allocator == "log" else None
        return store_with_image(
            descriptor,
            PAGES,
            self.budget_frames,
            tier,
            self.encrypt,
            allocator=self.allocator,
            recompress=recompress,
            loop=loop,
        )

    def operation(self) -> tuple[Callable[[], None], dict[int, bytes | None]]:
        """Something to do, and what it will make of the pages that it is about."""
        rng = self.rng
        first = rng.randrange(PAGES)
        count = min(rng.choice([1, 1, 2, 8, 24]), PAGES - first)
        kind = rng.randrange(8)
        if kind < 4:
            pages = [any_page(rng) for _ in range(count)]
            return lambda: put(self.store, self.thing, first, *pages), dict(enumerate(pages, first))
        if kind == 4:
            return lambda: self.store.flush(self.thing, first, count), dict.fromkeys(
                range(first, first + count), bytes(PAGE_BYTES)
            )
        if kind == 5:
            old = self.model.get(first, bytes(PAGE_BYTES))
            data = rng.randbytes(100)
            if old is None:
                return lambda: None, {}
            new = old[:50] + data + old[150:]
            return lambda: self.store.modify(self.thing, first, 50, memoryview(data)), {first: new}
        if kind == 6:
            return lambda: self.read(first, count), {}
        if self.store.recompressor and rng.random() < 0.5:
            return lambda: self.recompress(), {}
        return lambda: self.reclaim(), {}

    def read(self, first: int, count: int) -> None:
        try:
            got = get(self.store, self.thing, first, count)
        except PageLost:
            assert None in [self.model.get(index, b"") for index in range(first, first + count)]
        else:
            assert got == b"".join(
                self.model.get(index, bytes(PAGE_BYTES)) or b"(lost)" for index in range(first, first + count)
            )

    def recompress(self) -> None:
        assert self.store.recompressor
        self.store.recompressor.recompress_oldest()

    def reclaim(self) -> None:
        self.store.reclaimer.clean_some()

    def die_and_go_on(self) -> None:
        """Between two operations."""
        medium, self.tier = self.tier.medium, MemoryTier(self.tier.slot_count, self.tier.frame_bytes)
        self.tier.medium = medium
        self.store, self.thing = self.over(self.descriptor, self.tier)
        check(self.store)

    def do_and_die_within(self, line: int) -> bool:
        """False if the operation was over before."""
        act, after = self.operation()
        left: list[tuple[int, dict[int, bytes]]] = []
        with Death(line, lambda: left.append((copy_image(self.descriptor), dict(self.tier.medium)))):
            act()
        for descriptor, medium in left:
            self.inspect(descriptor, medium, after)
            os.close(descriptor)
        self.model.update(after)
        check(self.store)
        return bool(left)

    def inspect(self, descriptor: int, medium: dict[int, bytes], after: dict[int, bytes | None]) -> None:
        tier = MemoryTier(self.tier.slot_count, self.tier.frame_bytes)
        tier.medium = medium
        store, thing = self.over(descriptor, tier, self.rng.choice(page_loops()))
        check(store)
        self.pages_are_right(store, thing, after)
        while store.frames.queue_length[Queue.CLEAN]:
            drop_oldest_clean(store.frames)
        self.pages_are_right(store, thing, after)  # from below, now
        check(store)
        put(store, thing, 0, *(any_page(self.rng) for _ in range(PAGES)))
        check(store)

    def pages_are_right(self, store: Store, thing: TmemObject, after: dict[int, bytes | None]) -> None:
        for index in range(PAGES):
            allowed = [self.model.get(index, bytes(PAGE_BYTES))]
            if index in after:
                allowed += [after[index], None]
            try:
                page: bytes | None = get(store, thing, index)
            except PageLost:
                page = None
            assert page in allowed, f"page {index}"


@pytest.mark.parametrize("encrypt", ["no", "yes"])
@pytest.mark.parametrize("allocator", [*ALLOCATORS])
@pytest.mark.parametrize("world", [0, 1, *(pytest.param(world, marks=pytest.mark.slow) for world in range(2, 10))])
def test_death_at_any_line(rng: random.Random, world: int, allocator: str, encrypt: str) -> None:
    rng.seed(rng.random() + world)
    here = World(rng, encrypt, allocator)
    died = 0
    for _ in range(120):
        died += here.do_and_die_within(rng.choice([rng.randrange(1, 40), rng.randrange(1, 400)]))
        if not rng.randrange(10):
            here.die_and_go_on()
    assert died > 30
    os.close(here.descriptor)


def test_an_image_keeps_its_holes(rng: random.Random) -> None:
    """Rebuilding touches no memory that was never used: a table for a large device is mostly
    address space."""
    descriptor = new_descriptor()
    tier = MemoryTier(64)
    store, thing = store_with_image(descriptor, 1 << 24, 16, tier)
    page = any_page(rng)
    put(store, thing, (1 << 24) - 1, page)
    held_kib = os.fstat(descriptor).st_blocks // 2
    store, thing = store_with_image(descriptor, 1 << 24, 16, tier)
    assert get(store, thing, (1 << 24) - 1) == page
    assert os.fstat(descriptor).st_blocks // 2 <= held_kib + 16 < 1024
    os.close(descriptor)


def test_epochs_count_servers() -> None:
    descriptor = new_descriptor()
    for epoch in (1, 2, 3):
        store, _ = store_with_image(descriptor, PAGES, 8, MemoryTier(40))
        del store
        assert int.from_bytes(os.pread(descriptor, 8, 4088), "little") == epoch
    os.close(descriptor)
