"""The ghost remembers the last so many keys, and mistakes few others for them."""

import random

from zcache.pages.entry import OWNER_INDEX_BITS
from zcache.store.ghost import Ghost


def test_the_second_time_within_its_capacity_is_seen() -> None:
    ghost = Ghost(4096)
    keys = range(7 << OWNER_INDEX_BITS, (7 << OWNER_INDEX_BITS) + 2048)
    assert not any(ghost.saw(key) for key in keys)
    assert all(ghost.saw(key) for key in keys)


def test_what_was_missed_long_ago_is_forgotten(rng: random.Random) -> None:
    ghost = Ghost(4096)
    keys = [rng.getrandbits(56) for _ in range(1000)]
    for key in keys:
        ghost.saw(key)
    for key in range(8 * ghost.capacity):
        ghost.saw(key)
    assert sum([ghost.saw(key) for key in keys]) < 10


def test_how_many_are_remembered(rng: random.Random) -> None:
    """Rows fill by chance, so not each of the last `capacity`: but nearly all of the last half, of
    random keys."""
    ghost = Ghost(1 << 14)
    keys = [rng.getrandbits(56) for _ in range(3 * ghost.capacity)]
    for key in keys:
        ghost.saw(key)
    recent = keys[-ghost.capacity // 2 :]
    assert sum([ghost.saw(key) for key in recent]) > 0.95 * len(recent)


def test_strangers_are_seldom_recognized(rng: random.Random) -> None:
    """16 fingerprints of 65,535 in a row: one in 4096. Keys as they come: pages of several objects,
    in order."""
    ghost = Ghost(1 << 14)
    found = 0
    for handle in range(4):
        start = (handle << OWNER_INDEX_BITS) + rng.randrange(1 << 30)
        found += sum([ghost.saw(key) for key in range(start, start + 100_000)])
    assert found < 400_000 // 4096 * 2
