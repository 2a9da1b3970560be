"""What an attacker who owns the disk can do to encrypted frames: nothing but make reads fail, of
those frames."""

import os
import random
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import get, new_object, put, small_store, store_with_image, tier_of
from tests.support.tiers import MemoryTier
from zcache.control.check import check
from zcache.errors import EnvironmentProblem, PageDamaged
from zcache.image.image import EPOCH_SHIFT, MAX_EPOCH, new_descriptor
from zcache.image.signs import HEADER_BYTES
from zcache.pageframes import State
from zcache.pages.entry import decode_zpage
from zcache.pages.tmem import TmemObject
from zcache.store.store import Store

PAGES = 8


@pytest.fixture(autouse=True)
def default_encrypt() -> None:
    """Each test here says which it means."""


@pytest.fixture
def image() -> Iterator[int]:
    descriptor = new_descriptor()
    yield descriptor
    os.close(descriptor)


class ColdPages:
    """A store of raw pages, one a frame, of which the first four are below only."""

    def __init__(self, rng: random.Random) -> None:
        self.store = small_store(4, 16, encrypt="yes")
        self.tier = tier_of(self.store)
        self.thing = new_object(self.store, PAGES)
        self.pages = [raw_page(rng) for _ in range(PAGES)]
        put(self.store, self.thing, 0, *self.pages[:4])
        self.store.reclaimer.clean_some()
        put(self.store, self.thing, 4, *self.pages[4:])

    def frame(self, index: int) -> int:
        frame = decode_zpage(self.thing.table.entries[index]).frame
        assert self.store.frames.state[frame] == State.COLD
        return frame

    def slot(self, index: int) -> int:
        return self.store.frames.below[self.frame(index)]

    def only_these_are_refused(self, *refused: int) -> None:
        before = self.store.statistics.checksum_errors
        for index in range(PAGES):
            if index in refused:
                with pytest.raises(PageDamaged):
                    get(self.store, self.thing, index)
            else:
                assert get(self.store, self.thing, index) == self.pages[index]
        assert self.store.statistics.checksum_errors == before + len(refused)
        check(self.store)


def test_a_bit_flipped_in_the_ciphertext(rng: random.Random) -> None:
    cold = ColdPages(rng)
    cold.tier.flip_bit(cold.slot(1), rng.randrange(4096))
    cold.only_these_are_refused(1)


def test_a_bit_flipped_in_the_tag(rng: random.Random) -> None:
    """Of memory that is not ours to check, but the last line before wrong bytes."""
    cold = ColdPages(rng)
    cold.store.frames.seal[cold.frame(1) * 16 + rng.randrange(16)] ^= 1 << rng.randrange(8)
    cold.only_these_are_refused(1)


def test_a_bit_flipped_in_the_nonce(rng: random.Random) -> None:
    cold = ColdPages(rng)
    cold.store.frames.birth[cold.frame(1)] ^= 1 << rng.randrange(64)
    cold.only_these_are_refused(1)


def test_swapped_frames(rng: random.Random) -> None:
    cold = ColdPages(rng)
    one, other = cold.slot(0), cold.slot(2)
    cold.tier.medium[one], cold.tier.medium[other] = cold.tier.medium[other], cold.tier.medium[one]
    cold.only_these_are_refused(0, 2)


def test_swapped_frames_with_their_seals(rng: random.Random) -> None:
    """Even if the seal and the nonce went with the bytes: the frame's number is under the tag,
    too."""
    cold = ColdPages(rng)
    frames = cold.store.frames
    one, other = cold.frame(0), cold.frame(2)
    frames.below[one], frames.below[other] = frames.below[other], frames.below[one]
    frames.birth[one], frames.birth[other] = frames.birth[other], frames.birth[one]
    seals = frames.seal_of(one), frames.seal_of(other)
    frames.seal[other * 16 : other * 16 + 16], frames.seal[one * 16 : one * 16 + 16] = seals
    cold.only_these_are_refused(0, 2)


def test_an_older_version_of_a_frame(rng: random.Random) -> None:
    """The same page in the same slot, as it was once: what it was sealed with then is forgotten."""
    store = small_store(2, 2, encrypt="yes")
    tier, thing = tier_of(store), new_object(store, PAGES)
    assert isinstance(tier, MemoryTier)

    def push_below(page: bytes) -> int:
        put(store, thing, 0, page)
        store.reclaimer.clean_some()
        return store.frames.below[decode_zpage(thing.table.entries[0]).frame]

    slot = push_below(page_with_zpage_of(rng, 3000))
    old = tier.medium[slot]
    store.flush(thing, 0, 1)
    new = page_with_zpage_of(rng, 3000)
    while push_below(new) != slot:
        store.flush(thing, 0, 1)
    put(store, thing, 1, raw_page(rng), raw_page(rng))
    assert store.frames.state[decode_zpage(thing.table.entries[0]).frame] == State.COLD
    latest, tier.medium[slot] = tier.medium[slot], old
    with pytest.raises(PageDamaged):
        get(store, thing, 0)
    tier.medium[slot] = latest
    assert get(store, thing, 0) == new
    check(store)


def churn(rng: random.Random, store: Store, thing: TmemObject, tier: MemoryTier, operations: int) -> None:
    """Puts, trims, reads and flights; every third flight fails, and its frames are tried again."""
    for number in range(operations):
        first = rng.randrange(PAGES)
        match rng.randrange(4):
            case 0:
                store.flush(thing, first, 1)
            case 1:
                get(store, thing, first)
            case _:
                put(store, thing, first, page_with_zpage_of(rng, rng.randrange(100, 4096)))
        tier.failing_writes = number % 3 == 0
        store.reclaimer.clean_some()
        tier.failing_writes = 0
    check(store)


class NotingCipher:
    """The real one, with a list of what it was given to encrypt with."""

    used: ClassVar[list[tuple[bytes, bytes]]] = []

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._real = AESGCM(key)
        self.decrypt_into = self._real.decrypt_into

    def encrypt_into(self, nonce: bytes, *rest: Any) -> int:
        self.used.append((self._key, nonce))
        return self._real.encrypt_into(nonce, *rest)


def test_no_nonce_comes_twice_under_one_key(rng: random.Random, image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not over overwrites, flights that fail and are tried again, or servers that die and are
    replaced."""
    monkeypatch.setattr("zcache.seals.aead.AESGCM", NotingCipher)
    used = NotingCipher.used
    used.clear()
    medium: dict[int, bytes] = {}
    for server in range(1, 7):
        tier = MemoryTier(16)
        tier.medium = medium
        store, thing = store_with_image(image, PAGES, 4, tier, "yes")
        churn(rng, store, thing, tier, 150)
        assert store.statistics.writeback_errors > 0
        assert int.from_bytes(used[-1][1], "little") >> EPOCH_SHIFT == server
    assert len({key for key, _ in used}) == 1
    assert len(used) > 100 and len(set(used)) == len(used)


def test_each_image_has_a_key_of_its_own() -> None:
    secrets = []
    for _ in range(2):
        descriptor = new_descriptor()
        store_with_image(descriptor, PAGES, 4, MemoryTier(8), "yes")
        secrets.append(os.pread(descriptor, 4096, 0).split(b'"secret": "')[1][:64])
        os.close(descriptor)
    assert secrets[0] != secrets[1]


def test_epochs_do_not_start_again(image: int) -> None:
    """Rather no swap than a nonce a second time."""
    store_with_image(image, PAGES, 4, MemoryTier(8), "yes")
    os.pwrite(image, (MAX_EPOCH - 1).to_bytes(8, "little"), HEADER_BYTES - 8)
    store, _ = store_with_image(image, PAGES, 4, MemoryTier(8), "yes")
    assert store.frames.sequence < store.frames.give_births(1000) < 1 << 64
    with pytest.raises(EnvironmentProblem, match="has had 1048575 servers"):
        store_with_image(image, PAGES, 4, MemoryTier(8), "yes")


def test_the_image_says_what_it_was_made_with(image: int) -> None:
    store_with_image(image, PAGES, 4, MemoryTier(8), "yes")
    with pytest.raises(EnvironmentProblem, match="made with encrypt yes, not no"):
        store_with_image(image, PAGES, 4, MemoryTier(8), "no")
