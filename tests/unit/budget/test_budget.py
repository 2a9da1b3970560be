"""The budget becomes less and more under a store that is in use: nothing is lost by it, and memory
really goes back."""

import errno
import os
import random
from pathlib import Path

import pytest

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import (
    drop_clean_frames,
    get,
    is_miss,
    new_object,
    put,
    settings_of,
    small_store,
    store_with_image,
)
from tests.support.tiers import MemoryTier
from zcache.budget.budget import SWEEPS, Budget
from zcache.control.check import check
from zcache.control.settings import Settings
from zcache.errors import BadInput, StoreFull
from zcache.image.image import new_descriptor
from zcache.image.signs import Signs
from zcache.linux import libc, memory
from zcache.pageframes.queues import Queue
from zcache.pages.tmem import Kind
from zcache.store.store import Store


def budget_of(store: Store, min_frames: int = 2) -> Budget:
    return Budget(store.frames, store.reclaimer, store.lock, store.statistics, min_frames)


def sweep(budget: Budget) -> None:
    """As many breaths as it takes."""
    for _ in range(SWEEPS[0]):
        budget.sweep()


def the_same_disk(tier: MemoryTier) -> MemoryTier:
    """As the next server finds it."""
    after = MemoryTier(tier.slot_count, tier.frame_bytes)
    after.medium = dict(tier.medium)
    return after


def resident_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


@pytest.mark.parametrize("allocator", ["zbud", "log"])
def test_what_gives_way_goes_first_then_what_can_be_written(allocator: str, rng: random.Random) -> None:
    frame_pages = {"zbud": 1, "log": 15}[allocator]
    store = small_store(40, 100, allocator=allocator)
    budget = budget_of(store, 16)
    clean, swap = new_object(store, 600, Kind.EPHEMERAL), new_object(store, 600)
    pages = [raw_page(rng) for _ in range(20 * frame_pages)]
    put(store, swap, 0, *pages)
    while store.frames.free_slot_count > 8:
        put(store, clean, rng.randrange(600), page_with_zpage_of(rng, 2400))
    assert budget.shrink(4, may_write=False) == 4
    assert store.frames.queue_length[Queue.EPHEMERAL] and store.frames.budget_frames == 36
    before = store.frames.queue_length[Queue.EPHEMERAL]
    assert budget.shrink(100, may_write=False) == 36 - 20 - store.frames.reserve_frames
    assert store.frames.queue_length[Queue.EPHEMERAL] == 0 and store.statistics.evicted_ephemeral_frames >= before
    assert store.statistics.writeback_batches == 0
    check(store)
    assert budget.shrink(100, may_write=True) == 20 + store.frames.reserve_frames - 16
    assert store.frames.budget_frames == 16 and store.statistics.writeback_batches
    check(store)
    assert get(store, swap, 0, len(pages)) == b"".join(pages)
    assert budget.grow(100) == 24 and store.frames.budget_frames == 40
    assert store.statistics.budget_shrunk_frames == store.statistics.budget_grown_frames == 24
    put(store, swap, 300, *pages)
    assert get(store, swap, 0, len(pages)) == get(store, swap, 300, len(pages)) == b"".join(pages)
    check(store)


def test_memory_goes_back_to_the_system_and_comes_again(rng: random.Random) -> None:
    store = small_store(1024, allocator="log")  # 64 MiB
    budget = budget_of(store, 16)
    store.populate()
    assert store.is_populated()
    thing = new_object(store, 64)
    page = page_with_zpage_of(rng, 1000)
    put(store, thing, 0, *[page] * 64)
    before = resident_kib()
    assert budget.shrink(1000, may_write=False) == 1000
    assert resident_kib() < before - 60_000
    assert store.is_populated()  # as far as there are slots
    assert get(store, thing, 0, 64) == page * 64
    assert budget.grow(1000) == 1000
    assert resident_kib() > before - 10_000 and store.is_populated()
    check(store)


def test_locked_memory_goes_back_too() -> None:
    """In a process of its own, whose memory is locked as a server's is."""
    pid = os.fork()
    if not pid:
        try:
            libc.mlockall(libc.MCL_CURRENT | libc.MCL_FUTURE | libc.MCL_ONFAULT)
            store = small_store(512, allocator="log")
            store.populate()
            before = resident_kib()
            assert budget_of(store, 16).shrink(480, may_write=False) == 480
            os._exit(0 if resident_kib() < before - 28_000 else 1)
        except OSError as error:
            os._exit(77 if error.errno in (errno.EPERM, errno.ENOMEM) else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 77:
        pytest.skip("memory cannot be locked here")
    assert status == 0


def test_the_memory_of_an_image_goes_back_whoever_has_it_mapped(rng: random.Random) -> None:
    descriptor = new_descriptor()
    tier = MemoryTier(16, 1 << 16)
    store, thing = store_with_image(descriptor, 64, 512, tier, allocator="log")
    store.populate()
    page = page_with_zpage_of(rng, 1000)
    put(store, thing, 0, *[page] * 64)
    blocks = os.fstat(descriptor).st_blocks
    assert budget_of(store, 16).shrink(400, may_write=False) == 400
    assert os.fstat(descriptor).st_blocks <= blocks - 400 * 128
    # The next server has what holds something, and what it is told; the rest is given back,
    # whatever had memory.
    heir, thing = store_with_image(descriptor, 64, 512, the_same_disk(tier), allocator="log")
    budget = budget_of(heir, 16)
    budget.begin(32)
    assert heir.frames.budget_frames == 32 and heir.frames.resident == 2
    heir.populate()
    sweep(budget)
    assert os.fstat(descriptor).st_blocks < 100 * 128
    assert get(heir, thing, 0, 64) == page * 64
    check(heir)
    os.close(descriptor)


def test_a_successor_keeps_what_holds_something(rng: random.Random) -> None:
    descriptor = new_descriptor()
    tier = MemoryTier(16, 4096)
    store, thing = store_with_image(descriptor, 64, 32, tier)
    pages = [raw_page(rng) for _ in range(24)]
    put(store, thing, 0, *pages)
    heir, thing = store_with_image(descriptor, 64, 32, the_same_disk(tier))
    budget_of(heir, 8).begin(8)
    assert heir.frames.budget_frames == 24
    assert get(heir, thing, 0, 24) == b"".join(pages)
    check(heir)
    os.close(descriptor)


def test_it_never_becomes_less_than_what_was_promised(rng: random.Random) -> None:
    store = small_store(40, 24)
    budget = budget_of(store, 40)
    swap = new_object(store, 64)
    assert budget.shrink(10, may_write=True) == 0
    budget.min_frames = 16
    budget.shrink(24, may_write=True)
    with pytest.raises(StoreFull):
        put(store, swap, 0, *(raw_page(rng) for _ in range(64)))
    budget.grow(24)
    for index in range(64):
        put(store, swap, index, raw_page(rng))
    check(store)


def test_memory_that_cannot_be_had_leaves_the_budget_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    store = small_store(40)
    budget = budget_of(store, 8)
    budget.shrink(20, may_write=False)

    def refuse(_memory: memoryview) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Cannot allocate"):
        patched.setattr(memory, "populate", refuse)
        budget.grow(10)
    assert store.frames.budget_frames == 20 and not budget.is_settled()
    sweep(budget)
    assert budget.grow(10) == 10
    check(store)


def test_a_clean_frame_that_goes_is_below(rng: random.Random) -> None:
    store = small_store(16, 32)
    thing = new_object(store, 16)
    pages = [raw_page(rng) for _ in range(16)]
    put(store, thing, 0, *pages)
    while store.reclaimer.clean_some():
        pass
    assert budget_of(store, 4).shrink(12, may_write=False) == 12
    assert store.frames.cold == 12 and store.frames.queue_length[Queue.CLEAN] == 4
    drop_clean_frames(store)
    assert get(store, thing, 0, 16) == b"".join(pages)
    check(store)


# -- settings
# --------------------------------------------------------------------------------------------------


def test_settings_are_set_and_refused() -> None:
    store = small_store(1024, 100)
    settings = settings_of(store, 128)
    settings.budget.least_frames = 64
    assert settings.set("budget=512K..1M")["budget_min_bytes"] == 512 << 10
    assert settings.set("budget=1M")["budget_min_bytes"] == 1 << 20
    assert settings.set("low_watermark=40K")["low_watermark_bytes"] == 40960
    assert settings.set("high_watermark=400K") | {"low_watermark_bytes": 40960} == settings.get()
    assert settings.set("high_watermark=32K")["low_watermark_bytes"] == 7 * 4096
    assert settings.set("low_watermark=auto")["low_watermark_bytes"] == 1024 // 32 * 4096
    assert settings.set("recompress_share=25%")["recompress_share"] == store.reclaimer.spare_time.share == 0.25
    assert settings.set("admit=reused")["admit"] == store.admission.admit == "reused"
    now = settings.get()
    for word, said in (
        ("budget=5M", "more than the server was started with, or can use; give at most 4096K"),
        ("budget=100K..1M", "give at least 256K"),
        ("budget=2M..1M", "give the smaller one first"),
        ("budget=", "empty; give a size"),
        ("low_watermark=3M", "half of the largest"),
        ("high_watermark=4K", "high 8K or more"),
        ("recompress_share=0%", "more than 0%"),
        ("recompress_share=0.5", "give a percentage"),
        ("recompress_share=lots", "not a share"),
        ("admit=never", "reused or always"),
        ("size=1G", "no such setting; give budget="),
        ("budget", "no such setting"),
        ("", "no such setting"),
    ):
        with pytest.raises(BadInput, match=said):
            settings.set(word)
        assert settings.get() == now


def test_successors_go_on_with_the_settings() -> None:
    descriptor = new_descriptor()
    tier = MemoryTier(100, 4096)
    store, _ = store_with_image(descriptor, 64, 256, tier)
    signs = Signs(descriptor)
    settings = Settings(store, budget_of(store, 64), signs)
    for word in (
        "budget=300K..800K",
        "low_watermark=40K",
        "high_watermark=80K",
        "recompress_share=33%",
        "admit=always",
    ):
        settings.set(word)
    heir, _ = store_with_image(descriptor, 64, 256, the_same_disk(tier))
    heir.admission.admit = "reused"
    taken_over = Settings(heir, budget_of(heir, 64), Signs(descriptor))
    taken_over.take_over()
    heir.reclaimer.set_watermarks(256)
    assert taken_over.get() == settings.get()
    settings.set("low_watermark=auto")
    later, _ = store_with_image(descriptor, 64, 256, the_same_disk(tier))
    untouched = Settings(later, budget_of(later, 64), Signs(descriptor))
    untouched.take_over()
    assert later.reclaimer.chosen_watermarks is None
    os.close(descriptor)


def test_an_ephemeral_page_in_a_frame_that_goes_is_a_miss(rng: random.Random) -> None:
    store = small_store(16)
    clean = new_object(store, 16, Kind.EPHEMERAL)
    put(store, clean, 0, *(page_with_zpage_of(rng, 2400) for _ in range(16)))
    budget_of(store, 4).shrink(12, may_write=False)
    assert sum(is_miss(store, clean, index) for index in range(16)) == 12
    check(store)
