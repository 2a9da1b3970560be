"""check() finds each sort of imbalance: one book is falsified at a time."""

import errno
import itertools
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.pages import page_with_zpage_of, raw_page, same_filled_page
from tests.support.stores import new_object, put, small_store, tier_of
from zcache.control import check as check_module
from zcache.control import snapshot
from zcache.control.check import check
from zcache.errors import EnvironmentProblem, Imbalance
from zcache.image.flat_array import COUNTED_RUN_BYTES, count_bytes
from zcache.linux import memory
from zcache.pageframes import State
from zcache.pageframes.queues import Queue
from zcache.pages.entry import decode_zpage
from zcache.pages.tmem import Kind
from zcache.store.store import Store


def busy_store() -> Store:
    """Frames in every state but WRITEBACK, pages of every sort, both kinds of pool."""
    rng = random.Random(0)
    store = small_store(budget_frames=10, below_frames=20)
    device, clean = new_object(store, 32), new_object(store, 8, Kind.EPHEMERAL)
    for index in range(12):
        put(store, device, index, page_with_zpage_of(rng, 1500))
    store.reclaimer.clean_some()
    put(store, device, 12, *(raw_page(rng) for _ in range(5)), same_filled_page(7))
    put(store, device, 20, page_with_zpage_of(rng, 1800))
    put(store, clean, 0, page_with_zpage_of(rng, 1000), page_with_zpage_of(rng, 1000))
    check(store)
    states = {State(store.frames.state[frame]) for frame in range(1, store.frames.fresh_id)}
    assert states >= {State.ACTIVE, State.DIRTY, State.CLEAN, State.COLD}
    return store


def frame_in(store: Store, state: State) -> int:
    return next(frame for frame in range(1, store.frames.fresh_id) if store.frames.state[frame] == state)


def lose_a_page(store: Store) -> None:
    store.tmem.objects()[0].table.entries[0] = 0


def name_a_frame_twice(store: Store) -> None:
    entries = store.tmem.objects()[0].table.entries
    entries[30] = entries[12]
    store.tmem.objects()[0].table.touch(30, 30)
    store.statistics.stored_pages += 1
    store.statistics.raw_pages += 1
    store.statistics.compressed_bytes += 4096


def name_a_frame_that_never_was(store: Store) -> None:
    entries = store.tmem.objects()[0].table.entries
    entries[0] = entries[0] + 1000


def forget_a_live_zpage(store: Store) -> None:
    store.frames.live[frame_in(store, State.DIRTY)] -= 1


def change_a_state(store: Store) -> None:
    store.frames.state[frame_in(store, State.CLEAN)] = State.DIRTY


def drop_a_home(store: Store) -> None:
    store.frames.home[frame_in(store, State.CLEAN)] = 0


def leak_a_ram_slot(store: Store) -> None:
    store.frames.slots.free_count -= 1


def leak_a_slot_below(store: Store) -> None:
    tier_of(store).reserve(1)


def free_a_slot_in_use_below(store: Store) -> None:
    tier_of(store).release(store.frames.below[frame_in(store, State.COLD)])


def leak_a_fetch_slot(store: Store) -> None:
    store.frames.slots.fetch_count -= 1
    store.frames.slots.free_count += 1


def miscount_a_queue(store: Store) -> None:
    store.frames.queue_length[0] += 1


def unlink_a_frame(store: Store) -> None:
    queues = store.frames.queues
    slot = next(queues.slots_waiting(Queue.PERSISTENT))
    queues.newer[queues.older[slot]] = queues.newer[slot]
    queues.older[queues.newer[slot]] = queues.older[slot]


def withdraw_an_active_frame(store: Store) -> None:
    store.allocator.retire(frame_in(store, State.ACTIVE))


def share_a_frame_between_kinds(store: Store) -> None:
    frames = store.frames
    device = store.tmem.objects()[0]
    home = next(
        frames.home[decode_zpage(entry).frame]
        for entry in device.table.entries[0:20]
        if 0 < entry < 2 << 62 and frames.home[decode_zpage(entry).frame]
    )
    frames.queue_of[home] = 1


def miscount_bytes(store: Store) -> None:
    store.statistics.compressed_bytes += 1


FALSIFICATIONS = [
    lose_a_page,
    name_a_frame_twice,
    name_a_frame_that_never_was,
    forget_a_live_zpage,
    change_a_state,
    drop_a_home,
    leak_a_ram_slot,
    leak_a_slot_below,
    free_a_slot_in_use_below,
    leak_a_fetch_slot,
    miscount_a_queue,
    unlink_a_frame,
    withdraw_an_active_frame,
    share_a_frame_between_kinds,
    miscount_bytes,
]


@pytest.mark.parametrize("falsify", FALSIFICATIONS)
def test_each_falsified_book_is_found(falsify: Callable[[Store], None]) -> None:
    store = busy_store()
    falsify(store)
    with pytest.raises(Imbalance):
        check(store)


def test_the_store_goes_on_while_it_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is free, and what it does meanwhile is not seen."""
    store = busy_store()
    device = store.tmem.objects()[0]
    rng = random.Random(1)
    walk = check_module.walk_tables

    def walk_late(*books: Any) -> dict[str, int]:
        assert not store.lock.locked()
        put(store, device, 0, *(page_with_zpage_of(rng, 900) for _ in range(16)))
        store.reclaimer.clean_some()
        store.flush(device, 20, 12)
        return walk(*books)

    before = check(store)
    with monkeypatch.context() as patch:
        patch.setattr(check_module, "walk_tables", walk_late)
        assert check(store) == before
    assert check(store) != before


def test_all_memory_of_an_audit_is_populated_before_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page fault in Python is taken with the GIL held, and may wait for the server itself."""
    store = busy_store()
    populated: list[tuple[int, int]] = []
    populate, walk = memory.populate, check_module.walk_tables

    def note(part: memoryview) -> None:
        start = memory.address(part)
        populated.append((start, start + len(part)))
        populate(part)

    def walk_what_is_populated(books: snapshot.Snapshot, found: Any) -> dict[str, int]:
        blocks = [block for _, blocks in books.tables for block in blocks]
        for array in [*vars(found).values(), *blocks]:
            start = memory.address(array.cast("B"))
            assert any(first <= start and start + array.nbytes <= stop for first, stop in populated)
        return walk(books, found)

    monkeypatch.setattr(memory, "populate", note)
    monkeypatch.setattr(check_module, "walk_tables", walk_what_is_populated)
    check(store)
    assert len(populated) == 7


@pytest.mark.parametrize("failing", [1, 2, 6])
def test_an_audit_for_which_there_is_no_memory_is_not_begun(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    store = busy_store()
    calls = itertools.count(1)

    def populate(_memory: memoryview) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(memory, "populate", populate)
    with pytest.raises(EnvironmentProblem, match="no memory"):
        check(store)


def test_an_audit_goes_on_where_the_kernel_cannot_populate(monkeypatch: pytest.MonkeyPatch) -> None:
    def populate(_memory: memoryview) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # before Linux 5.14

    store = busy_store()
    monkeypatch.setattr(memory, "populate", populate)
    check(store)


def test_bytes_are_counted_in_all_runs() -> None:
    view = memoryview(bytearray(2 * COUNTED_RUN_BYTES + 3))
    for index in (0, COUNTED_RUN_BYTES - 1, COUNTED_RUN_BYTES, len(view) - 1):
        view[index] = State.ACTIVE
    assert count_bytes(view, State.ACTIVE) == 4


def test_books_that_outgrow_their_copy_are_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    store = busy_store()
    device = new_object(store, 8 << 9)
    make = snapshot.Room.make

    def make_late(room: snapshot.Room) -> None:
        make(room)
        for block in range(8):
            put(store, device, block << 9, same_filled_page(7))

    monkeypatch.setattr(snapshot, "MARGIN_BYTES", 0)
    monkeypatch.setattr(snapshot.Room, "make", make_late)
    with pytest.raises(EnvironmentProblem, match="ask again"):
        check(store)
    assert not store.lock.locked()
