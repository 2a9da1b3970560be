"""check: verifies that the store's books balance.

Everything that is derived (live counts, queues, free stacks, slot maps, statistics) is found anew
from the page tables and the frame table, and compared. It reads a snapshot: the store goes on
meanwhile, and only waits while the books are copied. The walk takes some four microseconds a page,
and rests half of that, for threads that want the interpreter.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from zcache.control.snapshot import Snapshot, populating, take_snapshot
from zcache.errors import Imbalance
from zcache.image.flat_array import FlatArray, Typecode, count_bytes
from zcache.pageframes import State
from zcache.pageframes.queues import Queue
from zcache.pageframes.slots import FETCH_SLOTS
from zcache.pageframes.view import FramesView
from zcache.pages.codec import NAMES, WORD
from zcache.pages.entry import (
    CODEC_MASK,
    CODEC_SHIFT,
    FRAME_MASK,
    LENGTH_MASK,
    LENGTH_SHIFT,
    LOST,
    OFFSET_MASK,
    OFFSET_SHIFT,
    PAGE_BYTES,
    SAME_FILLED,
    ZPAGE,
)
from zcache.pages.page_table import BLOCK_ENTRIES
from zcache.pages.tmem import Kind
from zcache.store.store import Store

#: Items between two rests, each about as long as the work on so many.
PART_ITEMS: Final = 1024
REST_SECONDS: Final = 0.001

T = TypeVar("T")


class _Found:
    """See `zcache.allocators.Found`; and what else is found only once, or not at all."""

    def __init__(self, books: Snapshot) -> None:
        frames = books.frames
        self.live = _populated("H", frames.fresh_id)
        self.live_bytes = _populated("I", frames.fresh_id)
        self.place = _populated("Q", frames.fresh_id)
        self.free_ids = _populated("B", frames.fresh_id)
        self.slots = _populated("B", frames.slot_count)
        self.belows = _populated("B", books.slots_below + 1)


def _populated(typecode: Typecode, count: int) -> memoryview:
    """Items, all zero, in memory that is there before the walk."""
    array = FlatArray(typecode, count)
    with populating():
        array.populate(0, count)
    return array.view


def check(store: Store) -> dict[str, int]:
    """Raises `Imbalance` with the first thing that is wrong; returns what was counted. Raises
    `EnvironmentProblem` if the store grew too fast to be copied, or there is no memory for that."""
    books = take_snapshot(store)
    found = _Found(books)
    counted = walk_tables(books, found)
    _compare("statistics", books.held_now, counted)
    counted["active_frames"] = _check_frames(books, found)
    _check_free(books, found)
    _check_queues(books.frames)
    books.allocator.check(found)
    return counted


def _compare(what: str, kept: object, found: object) -> None:
    if kept != found:
        raise Imbalance(f"{what}: the books say {kept}, the walk found {found}")


def _unhurried(items: Iterable[T], part: int = PART_ITEMS) -> Iterator[T]:
    """The items, with rests between."""
    for number, item in enumerate(items, 1):
        yield item
        if not number % part:
            time.sleep(REST_SECONDS)


def walk_tables(books: Snapshot, found: _Found) -> dict[str, int]:
    """What the statistics ought to say; fills `found`."""
    counted = dict.fromkeys(books.held_now, 0)
    for kind, blocks in books.tables:
        for block in _unhurried(blocks, PART_ITEMS // BLOCK_ENTRIES):
            kinds, raw, size_bytes = _walk_block(block.tolist(), kind, books.frames, found)
            same_filled = kinds[SAME_FILLED >> CODEC_SHIFT] + kinds[(ZPAGE >> CODEC_SHIFT) + WORD]
            stored = sum(kinds[ZPAGE >> CODEC_SHIFT : LOST >> CODEC_SHIFT])
            counted["stored_pages"] += stored
            counted["same_filled_pages"] += same_filled
            counted["raw_pages"] += raw
            counted["compressed_bytes"] += size_bytes
            counted["lost_pages"] += kinds[LOST >> CODEC_SHIFT]
            if kind is Kind.EPHEMERAL:
                counted["ephemeral_pages"] += stored
                counted["ephemeral_bytes"] += size_bytes
    return counted


#: The top five bits of an entry, kind and codec, that there are.
_KNOWN: Final = {
    0,
    SAME_FILLED >> CODEC_SHIFT,
    LOST >> CODEC_SHIFT,
    *((ZPAGE >> CODEC_SHIFT) + codec for codec in NAMES),
}


def _walk_block(entries: list[int], kind: Kind, frames: FramesView, found: _Found) -> tuple[list[int], int, int]:
    """How many entries of each kind and codec (their top five bits), raw pages, and bytes of
    zpages; fills `found`."""
    kinds = [0] * 32
    raw = size_bytes = 0
    live, live_bytes, place = found.live, found.live_bytes, found.place
    fresh_id, frame_bytes = frames.fresh_id, frames.frame_bytes
    home, queue_of = frames.home, frames.queue_of
    is_ephemeral, ephemeral = kind is Kind.EPHEMERAL, Queue.EPHEMERAL.value
    for entry in entries:
        kinds[entry >> CODEC_SHIFT] += 1
        if not ZPAGE <= entry < SAME_FILLED:
            continue
        frame = entry & FRAME_MASK
        if not 0 < frame < fresh_id:
            raise Imbalance(f"an entry names frame {frame}, which never was")
        start = entry >> OFFSET_SHIFT & OFFSET_MASK
        length = (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1
        stop = start + length
        size_bytes += length
        if length == PAGE_BYTES:
            raw += 1
        if (queue_of[home[frame]] == ephemeral) is not is_ephemeral:  # slot 0 is in none
            raise Imbalance(f"frame {frame} holds a page of the other kind of pool")
        if stop > frame_bytes:
            raise Imbalance(f"frame {frame}: a zpage overruns it")
        if live[frame]:
            other = place[frame]
            if start < other >> 16 and other & 0xFFFF < stop:
                raise Imbalance(f"frame {frame}: zpages overlap")
        live[frame] += 1
        live_bytes[frame] += length
        place[frame] = stop << 16 | start
    unknown = [number for number, count in enumerate(kinds) if count and number not in _KNOWN]
    if unknown:
        raise Imbalance(f"an entry names kind {unknown[0] >> 3} and codec {unknown[0] & CODEC_MASK}")
    return kinds, raw, size_bytes


#: By state: whether such a frame is in RAM, and whether it is below.
_IN_RAM: Final = tuple(state in (State.ACTIVE, State.DIRTY, State.WRITEBACK, State.CLEAN) for state in State)
_BELOW: Final = tuple(state in (State.CLEAN, State.COLD) for state in State)
_MAY_BE_EMPTY: Final = tuple(state in (State.FREE, State.WRITEBACK) for state in State)


def _check_frames(books: Snapshot, found: _Found) -> int:
    """How many frames are ACTIVE."""
    frames, is_used_below = books.frames, books.is_used_below
    states, homes, belows, lives, frame_of = frames.state, frames.home, frames.below, frames.live, frames.frame_of
    counts = [0] * len(State)
    for frame in _unhurried(range(1, frames.fresh_id)):
        state, live, home, below = states[frame], lives[frame], homes[frame], belows[frame]
        counts[state] += 1
        if live != found.live[frame]:
            raise Imbalance(
                f"frame {frame} ({State(state).name}): the books say {live} zpages, the walk found {found.live[frame]}"
            )
        if not live and not _MAY_BE_EMPTY[state]:
            raise Imbalance(f"frame {frame} is {State(state).name} with nothing alive in it")
        if (home != 0) is not _IN_RAM[state] or (below != 0) is not _BELOW[state]:
            raise Imbalance(f"frame {frame} is {State(state).name} with RAM slot {home} and slot {below} below")
        if home:
            _mark(found.slots, home, "RAM slot")
            if frame_of[home] != frame:
                raise Imbalance(f"RAM slot {home} is frame {frame}'s home, and says it is {frame_of[home]}'s")
        if below:
            _mark(found.belows, below, "slot below")
            if not is_used_below(below):
                raise Imbalance(f"frame {frame} is in slot {below} below, which is not in use")
    _compare("free frame ids", len(frames.free_ids), counts[State.FREE])
    _compare("frames in flight", frames.in_flight, counts[State.WRITEBACK])
    _compare("cold frames", frames.cold, counts[State.COLD])
    _compare("resident frames", frames.resident, sum(counts) - counts[State.FREE] - counts[State.COLD])
    # Those in flight, from RAM or from tier to tier, have slots already that no frame names yet.
    if not (frames.in_flight or books.flights_below):
        _compare("slots in use below", books.used_below_count, counts[State.CLEAN] + counts[State.COLD])
    return counts[State.ACTIVE]


def _mark(marks: memoryview, number: int, what: str) -> None:
    """Raises `Imbalance` at the second time."""
    if marks[number]:
        raise Imbalance(f"{what} {number} is there twice")
    marks[number] = 1


def _check_free(books: Snapshot, found: _Found) -> None:
    """What waits to be handed out; the RAM slots in use are marked already."""
    frames = books.frames
    for frame in _unhurried(frames.free_ids):
        _mark(found.free_ids, frame, "free frame id")
        if frames.state[frame] != State.FREE:
            raise Imbalance(f"frame {frame} is on the free stack and {State(frames.state[frame]).name}")
    for slot in _unhurried(frames.free_slots):
        _mark(found.slots, slot, "RAM slot")
    for slot in _unhurried(itertools.chain(frames.fetch_slots, frames.absent_slots)):
        _mark(found.slots, slot, "RAM slot")
    if len(frames.fetch_slots) == FETCH_SLOTS:  # none is being read into
        _compare("RAM slots", frames.slot_count - 1, count_bytes(found.slots, 1))


def _check_queues(frames: FramesView) -> None:
    expected = {
        Queue.PERSISTENT: (State.ACTIVE, State.DIRTY),
        Queue.EPHEMERAL: (State.ACTIVE, State.DIRTY),
        Queue.CLEAN: (State.CLEAN,),
    }
    waiting = 0
    for queue, states in expected.items():
        length = 0
        for slot in _unhurried(frames.slots_waiting(queue)):
            length += 1
            frame = frames.frame_of[slot]
            if frames.state[frame] not in states or frames.queue_of[slot] != queue or frames.home[frame] != slot:
                raise Imbalance(f"frame {frame} ({State(frames.state[frame]).name}) waits in queue {queue.name}")
            if length > frames.slot_count:
                raise Imbalance(f"queue {queue.name} is a circle without an end")
        _compare(f"length of queue {queue.name}", frames.queue_length[queue], length)
        waiting += length
    _compare("frames in queues or in flight", frames.resident - frames.in_flight, waiting)
