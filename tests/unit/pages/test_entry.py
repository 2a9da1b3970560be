"""The page-table word, and that the hot paths take it apart as `decode_zpage` does."""

import random

import pytest

from tests.support.pages import same_filled_page, word_filled_page
from tests.support.stores import get, new_object, put, small_store
from zcache.pages.entry import EMPTY, FRAME_MASK, LOST, SAME_FILLED, ZPAGE, decode_zpage, zpage_tag


def test_kinds_are_told_apart_by_comparison() -> None:
    highest_zpage = zpage_tag(7, 4096) | 0xFFFF << 31 | FRAME_MASK
    assert EMPTY < ZPAGE <= zpage_tag(0, 1) < highest_zpage < SAME_FILLED <= SAME_FILLED | 0xFFFFFFFF < LOST < 1 << 64


@pytest.mark.parametrize("length", [1, 2, 63, 64, 4095, 4096])
def test_zpage_fields_do_not_run_into_each_other(length: int, rng: random.Random) -> None:
    for _ in range(100):
        frame, offset, codec = rng.randint(1, FRAME_MASK), rng.randrange(1 << 16), rng.randrange(8)
        zpage = decode_zpage(zpage_tag(codec, length) | offset << 31 | frame)
        assert zpage == (frame, offset, length, codec)


def test_what_the_store_writes_is_what_decode_reads(rng: random.Random) -> None:
    store = small_store(4)
    thing = new_object(store, 4)
    page = rng.randbytes(1000) + bytes(3096)
    put(store, thing, 0, page, page)
    first, second = (decode_zpage(thing.table.entries[index]) for index in (0, 1))
    assert first.frame == second.frame and first.offset == 0
    assert second.offset == 4096 - (second.length + 63) // 64 * 64
    assert first.length == second.length == len(store.putter.codec.compress(memoryview(page)))


@pytest.mark.parametrize("word", [0, 1, 0xFFFFFFFF, 0xA5A5A5A5, 0x80000000])
def test_a_repeated_32_bit_word_is_its_entry(word: int) -> None:
    store = small_store(4)
    thing = new_object(store, 1)
    put(store, thing, 0, same_filled_page(word))
    assert thing.table.entries[0] == SAME_FILLED | word
    assert get(store, thing, 0) == same_filled_page(word)
    assert store.frames.resident == 0 and store.statistics.same_filled_pages == 1


@pytest.mark.parametrize("word", [0x0123456789ABCDEF, 0xFFFFFFFF00000000, 1, 0x00007F0012345678])
def test_a_repeated_64_bit_word_is_a_zpage_of_8_bytes(word: int) -> None:
    store = small_store(4)
    thing = new_object(store, 1)
    put(store, thing, 0, word_filled_page(word))
    assert decode_zpage(thing.table.entries[0]).length == 8
    assert get(store, thing, 0) == word_filled_page(word)
    assert store.statistics.same_filled_pages == 1


def test_first_and_last_word_alike_is_not_same_filled(rng: random.Random) -> None:
    store = small_store(4)
    thing = new_object(store, 1)
    page = bytes(8) + rng.randbytes(4080) + bytes(8)
    put(store, thing, 0, page)
    assert get(store, thing, 0) == page and store.statistics.same_filled_pages == 0
