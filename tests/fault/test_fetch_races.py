"""Pages that change, and frames that move, while a get reads them from below. Each race is made to
happen, not waited for."""

import random
import threading
import time
from typing import Any

import pytest

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import drop_clean_frames, frame_of, get, make_cold, once, put, store_with_tier
from zcache.control.check import check
from zcache.control.status import gather_status
from zcache.fetch.readback import RETRY_PAUSES_SECONDS
from zcache.pageframes import State
from zcache.pageframes.transitions import adopt

ALWAYS = 1 << 30


def test_a_page_overwritten_while_it_is_fetched_reads_as_the_new_one(rng: random.Random) -> None:
    """The frame's last page dies before the read begins, so nothing that is read can be right."""
    store, tier, thing = store_with_tier()
    make_cold(store, thing, rng)
    new = page_with_zpage_of(rng, 500)
    tier.before_read = once(lambda: put(store, thing, 0, new))
    assert get(store, thing, 0) == new
    check(store)


def test_a_page_trimmed_while_it_is_fetched_reads_as_zeros(rng: random.Random) -> None:
    """What is read is good, and nobody's."""
    store, tier, thing = store_with_tier()
    make_cold(store, thing, rng)
    tier.before_read = once(lambda: store.flush(thing, 0, 1))
    assert get(store, thing, 0) == bytes(4096)
    check(store)


def test_a_slot_reused_while_it_is_read_is_not_believed(rng: random.Random) -> None:
    """The page dies, its slot below is given to another frame and overwritten, and the page is put
    again: all during one read."""
    store, tier, thing = store_with_tier(budget_frames=4, below_frames=2)
    make_cold(store, thing, rng)
    new = page_with_zpage_of(rng, 1000)

    def replace() -> None:
        store.flush(thing, 0, 16)
        for index in range(1, 4):
            put(store, thing, index, raw_page(rng))
        store.reclaimer.clean_some()
        put(store, thing, 0, new)

    tier.before_read = once(replace)
    assert get(store, thing, 0) == new
    assert store.statistics.checksum_errors == 0
    check(store)


def test_a_frame_reborn_under_its_old_id_while_it_is_read_is_not_believed(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is overwritten, and its new frame gets the old one's id and goes below, too: its
    entry is what it was, and only the frame's birth tells that the bytes read are the old
    page's."""
    store, tier, thing = store_with_tier(budget_frames=2, below_frames=16)
    new = raw_page(rng)
    put(store, thing, 0, raw_page(rng))
    store.reclaimer.clean_some()
    put(store, thing, 8, raw_page(rng), raw_page(rng))
    entry = thing.table.entries[0]

    def overwrite_and_push_below() -> None:
        put(store, thing, 0, new)
        store.reclaimer.clean_some()
        put(store, thing, 10, raw_page(rng), raw_page(rng))

    def old_bytes_then(*arguments: Any) -> None:
        read(*arguments)
        meanwhile()

    read, meanwhile = tier.read, once(overwrite_and_push_below)
    monkeypatch.setattr(tier, "read", old_bytes_then)
    assert get(store, thing, 0) == new
    assert thing.table.entries[0] == entry, "the case was not made"
    check(store)


@pytest.mark.parametrize("trimmed", [True, False])
def test_what_a_get_saw_before_it_waited_for_a_fetch_slot_is_not_believed(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, trimmed: bool
) -> None:
    """Of two cold pages the first comes back into RAM, is seen there, and dies while the get waits
    for a slot to read the second into."""
    store, tier, thing = store_with_tier(budget_frames=4, below_frames=16)
    pages = [raw_page(rng), raw_page(rng)]
    for index, page in enumerate(pages):
        put(store, thing, index, page)
        store.reclaimer.clean_some()
    put(store, thing, 8, *(raw_page(rng) for _ in range(4)))
    store.flush(thing, 8, 4)
    new = page_with_zpage_of(rng, 300)
    frames, fetcher = store.frames, store.fetcher
    assert fetcher
    slots = [frames.slots.take_fetch() for _ in range(frames.slots.fetch_count)]
    get_thread: list[bytes] = []
    look_up = fetcher.look_up

    def bring_the_first_back_then_look(*arguments: Any) -> Any:
        monkeypatch.setattr(fetcher, "look_up", look_up)
        frame = frame_of(thing, 0)
        spare = adopt(frames, frame, fill(frame))
        slots.append(spare)
        return look_up(*arguments)

    def fill(frame: int) -> int:
        slot = slots.pop()
        tier.read(frames.below[frame], [frames.ram_view[slot * 4096 : (slot + 1) * 4096]])
        return slot

    monkeypatch.setattr(fetcher, "look_up", bring_the_first_back_then_look)
    reader = threading.Thread(target=lambda: get_thread.append(get(store, thing, 0, 2)))
    reader.start()
    while not fetcher.readback.slot_returned._waiters:  # type: ignore[attr-defined]  # noqa: SLF001
        assert reader.is_alive(), "the get did not wait"
        time.sleep(0.001)
    if trimmed:
        store.flush(thing, 0, 1)
    else:
        put(store, thing, 0, new)
    with store.lock:
        for slot in slots:
            frames.slots.give_fetch(slot)
        fetcher.readback.slot_returned.notify_all()
    reader.join(timeout=10)
    assert get_thread == [(bytes(4096) if trimmed else new) + pages[1]]
    assert store.statistics.decode_errors == 0
    check(store)


def test_two_gets_of_one_cold_frame_take_it_back_once(rng: random.Random) -> None:
    """Both read it; the first makes its slot the frame's home, the second throws its own away."""
    store, tier, thing = store_with_tier()
    page = make_cold(store, thing, rng)
    store.flush(thing, 8, 1)  # room for it
    seen: list[bytes] = []
    tier.before_read = once(lambda: seen.append(get(store, thing, 0)))
    assert get(store, thing, 0) == page and seen == [page]
    assert store.statistics.fetched_frames == 2 and store.statistics.readopted_frames == 1
    assert store.frames.state[frame_of(thing, 0)] == State.CLEAN
    check(store)


def test_a_get_that_fails_where_another_succeeds_takes_the_page_from_ram(rng: random.Random) -> None:
    """Before the last of its tries, which all fail, another get of the same frame succeeds."""
    store, tier, thing = store_with_tier()
    page = make_cold(store, thing, rng)
    store.flush(thing, 8, 1)  # room for it
    tier.failing_reads = ALWAYS
    tries = 0

    def succeed_before_the_last_try() -> None:
        nonlocal tries
        tries += 1
        if tries == 2 + len(RETRY_PAUSES_SECONDS):
            tier.failing_reads = 0
            assert get(store, thing, 0) == page
            tier.failing_reads = ALWAYS

    tier.before_read = succeed_before_the_last_try
    assert get(store, thing, 0) == page
    assert store.statistics.fetch_errors == 0 and store.statistics.fetched_frames == 1
    assert gather_status(store, thing, {})["reasons"] == []
    check(store)


def test_a_frame_that_came_back_and_left_again_while_it_is_read_is_believed(rng: random.Random) -> None:
    """Another get brings it back, reclaim drops it, its slot is another frame's: what is below is
    still the page."""
    store, tier, thing = store_with_tier()
    page = make_cold(store, thing, rng)
    store.flush(thing, 8, 1)
    others = [raw_page(rng) for _ in range(4)]

    def bring_back_and_drop() -> None:
        assert get(store, thing, 0) == page
        slot = store.frames.home[frame_of(thing, 0)]
        assert slot
        store.reclaimer.clean_some()
        put(store, thing, 12, *others)
        assert not store.frames.home[frame_of(thing, 0)]
        assert store.frames.frame_of[slot] != frame_of(thing, 0)

    tier.after_read = once(bring_back_and_drop)
    assert get(store, thing, 0) == page
    assert get(store, thing, 12, 4) == b"".join(others)
    check(store)


def test_one_buddy_overwritten_while_the_frame_is_read(rng: random.Random) -> None:
    """The frame lives on by the other: the get of both has the new page, and the one that was
    read."""
    store, tier, thing = store_with_tier()
    old, kept, new = (page_with_zpage_of(rng, 1000) for _ in range(3))
    put(store, thing, 0, old, kept)
    store.reclaimer.clean_some()
    put(store, thing, 8, *(raw_page(rng) for _ in range(4)))
    tier.after_read = once(lambda: put(store, thing, 0, new))
    assert get(store, thing, 0, 2) == new + kept
    check(store)


def test_reclaim_drops_the_frame_that_a_get_is_decoding(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """The get has copied its zpage out; its frame goes, and another takes its slot, before a byte
    is decoded."""
    store, _, thing = store_with_tier(budget_frames=2)
    page, other = page_with_zpage_of(rng, 1000), raw_page(rng)
    put(store, thing, 0, page)
    store.reclaimer.clean_some()
    slot = store.frames.home[frame_of(thing, 0)]

    def drop() -> None:
        drop_clean_frames(store)
        put(store, thing, 8, other)
        assert store.frames.home[frame_of(thing, 8)] == slot, "the case was not made"

    def decode_page(body: bytes, out: memoryview) -> bool:
        meanwhile()
        return decode(body, out)

    meanwhile, decode = once(drop), store.loop.decode_page
    monkeypatch.setattr(store.loop, "decode_page", decode_page)
    assert get(store, thing, 0) == page and get(store, thing, 8) == other
    check(store)


def test_reclaim_drops_a_frame_between_the_look_and_the_read(
    rng: random.Random,
) -> None:
    """A get of two pages has seen the first in RAM, and reads the second; the first's frame is
    dropped meanwhile."""
    store, tier, thing = store_with_tier()
    cold = make_cold(store, thing, rng)
    store.flush(thing, 9, 3)
    warm = page_with_zpage_of(rng, 1000)
    put(store, thing, 1, warm)
    store.reclaimer.clean_some()

    def drop() -> None:
        drop_clean_frames(store)
        put(store, thing, 12, *(raw_page(rng) for _ in range(3)))

    tier.before_read = once(drop)
    assert get(store, thing, 0, 2) == cold + warm
    assert store.frames.state[frame_of(thing, 1)] == State.COLD
    check(store)
