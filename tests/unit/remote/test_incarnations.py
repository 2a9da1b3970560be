"""How many copies each incarnation holds: counted once, and exact from then on."""

import random
from collections.abc import Callable
from typing import Final

import pytest

from tests.support.clock import FakeClock
from tests.support.remote import FRAME_BYTES, sections
from zcache.image.image import Section
from zcache.remote.copies import Copies
from zcache.remote.peer import Identity, Peer
from zcache.remote.reach import Reach
from zcache.remote.tables import INCARNATIONS, Tables
from zcache.remote.url import parse_url

SLOTS: Final = 128
PEERS: Final = 3

Image = Callable[[str], Section]


def server(image: Image) -> Copies:
    """Over an image; it has greeted nobody yet."""
    clock = FakeClock()
    reach = Reach(parse_url("unix:///engine"), clock)
    peers = [Peer(lane, reach, list, b"zcache:", clock) for lane in range(PEERS)]
    return Copies(Tables(SLOTS, image), peers, FRAME_BYTES, clock)


def greet(copies: Copies, lane: int, word: int, run: int = 1) -> int:
    """A peer, as an engine; returns the number of its incarnation."""
    peer = copies.peers[lane]
    copies.settle(peer, Identity(run, word))
    return peer.number


def held(copies: Copies, number: int) -> int:
    return copies.tables.count_of(number)


@pytest.fixture
def image() -> Image:
    return sections(SLOTS)


@pytest.fixture
def copies(image: Image) -> Copies:
    """Three engines, with words 11, 12 and 13, that hold some frames."""
    copies = server(image)
    for lane in range(PEERS):
        greet(copies, lane, 11 + lane)
    for slot in range(1, 31):
        generation = copies.renew(slot)
        for lane in (slot % PEERS, (slot + 1) % PEERS)[: 1 + slot % 4]:
            assert copies.hold(slot, copies.peers[lane].number, generation)
    return copies


def test_a_successor_knows_what_engines_hold_before_it_has_greeted_one(copies: Copies, image: Image) -> None:
    assert sum(copies.at) > 30
    assert server(image).at == copies.at == [held(copies, peer.number) for peer in copies.peers]


def test_a_greeting_counts_nothing(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would, for as long as all slots take, keep those from their work who give a slot back."""

    def count_of(_tables: Tables, _number: int) -> int:
        raise AssertionError("all slots are looked through")

    monkeypatch.setattr(Tables, "count_of", count_of)
    before = list(copies.at)
    greet(copies, 0, 11)
    greet(copies, 1, 12, run=2)  # from a snapshot
    assert copies.at == before and copies.unproven() == before[1]
    greet(copies, 2, 99)  # it has forgotten all
    assert copies.at == [*before[:2], 0]


def test_what_engines_hold_is_exact_whatever_happens(image: Image, rng: random.Random) -> None:
    copies = server(image)
    tables = copies.tables
    for _ in range(300):
        slot, lane = rng.randint(1, SLOTS), rng.randrange(PEERS)
        number, generation = copies.peers[lane].number, tables.generation[slot]
        match rng.randrange(8):
            case 0:
                greet(copies, lane, word=1 + 10 * rng.randrange(12) + lane, run=rng.randrange(3))
            case 1:
                copies.drop(slot)
            case 2:
                copies.renew(slot)
            case 3:
                copies.miss(slot, rng.choice(tables.holders_of(slot)) or 1, generation)
            case 4 if number:
                old = rng.choice(tables.holders_of(slot))
                _ = old and copies.let_go(slot, old, generation, successor=number)
            case 5 if rng.random() < 0.1:
                copies = server(image)
                tables = copies.tables
            case _ if number:
                copies.hold(slot, number, generation)
        expected = [0] * PEERS
        for known in range(1, INCARNATIONS):
            if peer := copies.holder(known):
                expected[peer.lane] += held(copies, known)
        assert copies.at == expected


def test_a_number_is_fresh_as_long_as_there_are_such(copies: Copies) -> None:
    """Of one that holds nothing, copies may still be on their way to be removed."""
    old = copies.peers[0].number
    for slot in range(1, SLOTS + 1):
        copies.drop(slot)
    assert held(copies, old) == 0 and copies.dead.count
    assert greet(copies, 0, 50) not in range(1, PEERS + 1)


def test_when_none_is_fresh_one_is_taken_that_nobody_is_and_that_holds_nothing(image: Image) -> None:
    copies = server(image)
    for word in range(1, INCARNATIONS):
        number = greet(copies, 2, word)
        if number % 2:
            assert copies.hold((number + 1) // 2, number, 0)
    assert greet(copies, 0, 1000) == 2
    assert greet(copies, 1, 1001) == 4, "2 holds nothing, and is the first one's"


def test_when_all_hold_something_there_is_no_number(image: Image) -> None:
    copies = server(image)
    for word in range(1, INCARNATIONS):
        number = greet(copies, 2, word)
        assert copies.hold((number + 1) // 2, number, 0)
    assert greet(copies, 0, 1000) == 0
