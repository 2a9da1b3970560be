"""Words of an image: written whole, whatever machine it is."""

import random

import pytest

from tests.support.pages import any_page
from tests.support.stores import get, new_object, put, small_store
from zcache.control.check import check
from zcache.image.whole_words import WHOLE_WORDS, CopiedWords, SingleWords, Words, of_machine
from zcache.pages import page_table
from zcache.pages.page_table import EMPTY_RUN, LOST_RUN
from zcache.store import put as put_module


@pytest.mark.parametrize("words", [CopiedWords(), SingleWords()])
def test_what_is_asked_for_is_written_and_nothing_else(words: Words, rng: random.Random) -> None:
    for count in (0, 1, 2, 17, WHOLE_WORDS):
        view = memoryview(bytearray(8 * 100)).cast("Q")
        before = [rng.getrandbits(64) for _ in range(100)]
        for index, word in enumerate(before):
            view[index] = word
        values = [rng.getrandbits(64) for _ in range(count)]
        words.publish(view, 10, values)
        assert view.tolist() == before[:10] + values + before[10 + count :]
        for run in (LOST_RUN, EMPTY_RUN):
            words.fill(view, 10, 10 + count, run)
            assert view.tolist() == before[:10] + [run[0]] * count + before[10 + count :]


def test_only_where_a_copy_is_known_to_be_of_whole_words_are_they_copied() -> None:
    """glibc's memcpy for arm64 may be one that can stop at any byte."""
    assert isinstance(of_machine("x86_64"), CopiedWords)
    assert all(isinstance(of_machine(machine), SingleWords) for machine in ("aarch64", "riscv64", "ppc64le"))


def test_a_store_works_with_single_words(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (put_module, page_table):
        for name in ("publish", "fill"):
            monkeypatch.setattr(module, name, getattr(SingleWords, name), raising=False)
    store = small_store(40, 100, allocator="log")
    thing = new_object(store, 1000)
    expected = dict.fromkeys(range(1000), bytes(4096))
    for _ in range(60):
        first = rng.randrange(900)
        pages = [any_page(rng) for _ in range(rng.randrange(1, 90))]
        put(store, thing, first, *pages)
        expected |= dict(enumerate(pages, first))
        store.flush(thing, first, 3)
        expected |= dict.fromkeys(range(first, first + 3), bytes(4096))
    check(store)
    for page, data in expected.items():
        assert get(store, thing, page) == data
