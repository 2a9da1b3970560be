"""check: walks the whole store and verifies that its books balance.

Everything that is derived (live counts, queues, free stacks, slot maps, statistics) is found anew from the page
tables and the frame table, and compared. It holds the store's lock for as long as that takes (about four seconds for
a million pages on the host, many times that in an emulated guest: longer than the kernel waits for a request), so on a
live swap device it is a tool for diagnosis. What memory it needs (11 bytes a frame id, one a
slot) it takes, and populates, before it takes the lock: under it, it asks the system for nothing.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable

from zcache.codec import NAMES, WORD
from zcache.entry import LOST, SAME_FILLED, decode_zpage
from zcache.errors import Imbalance
from zcache.flat_array import FlatArray
from zcache.pageframes import State
from zcache.pageframes.frames import FETCH_SLOTS, Queue
from zcache.statistics import HELD_NOW
from zcache.store import Store
from zcache.tmem import Kind


class _Found:
    """What the walk finds of each frame: how many live zpages, and the entry of one of them."""

    def __init__(self, frame_count: int, slot_count: int, below_count: int) -> None:
        self._arrays = [
            FlatArray("H", frame_count),
            FlatArray("Q", frame_count),
            FlatArray("B", frame_count),
            FlatArray("B", slot_count),
            FlatArray("B", below_count),
        ]
        for array in self._arrays:
            with contextlib.suppress(OSError):  # a kernel that cannot: it is touched as it is used
                array.populate(0, array.count)
        self.live, self.entry, self.free_ids, self.slots, self.belows = (array.view for array in self._arrays)


def check(store: Store) -> dict[str, int]:
    """Raises `Imbalance` with the first thing that is wrong; returns what was counted."""
    frames = store.frames
    # Frames that are taken between this line and the lock are few; the margin is checked below.
    margin = frames.fresh_id + (1 << 12)
    found = _Found(
        min(margin, frames.frame_count + 1), frames.slot_count, store.tier.slot_count + 1 if store.tier else 1
    )
    with store.lock:
        if frames.fresh_id > margin:
            raise Imbalance("the store grew while the check was being prepared; check again")
        counted = _walk_tables(store, found)
        _compare("statistics", {name: getattr(store.statistics, name) for name in HELD_NOW}, counted)
        _check_frames(store, found)
        _check_queues(store)
        store.allocator.check(found.live, found.entry)
    return counted


def _compare(what: str, kept: object, found: object) -> None:
    if kept != found:
        raise Imbalance(f"{what}: the books say {kept}, the walk found {found}")


def _walk_tables(store: Store, found: _Found) -> dict[str, int]:
    """What the statistics ought to say; fills `found`."""
    counted: Counter[str] = Counter()
    frames = store.frames
    for thing in store.tmem.objects():
        ephemeral = thing.kind is Kind.EPHEMERAL
        for start, stop in thing.table.touched_runs(0, thing.page_count):
            for entry in thing.table.entries[start:stop]:
                if not entry:
                    continue
                if entry >= LOST:
                    counted["lost_pages"] += 1
                    continue
                counted["stored_pages"] += 1
                counted["ephemeral_pages"] += ephemeral
                if entry >= SAME_FILLED:
                    counted["same_filled_pages"] += 1
                    continue
                zpage = decode_zpage(entry)
                if zpage.codec not in NAMES or not 0 < zpage.frame < frames.fresh_id:
                    raise Imbalance(f"an entry names codec {zpage.codec} and frame {zpage.frame}")
                counted["same_filled_pages"] += zpage.codec == WORD
                counted["raw_pages"] += zpage.length == 4096
                counted["compressed_bytes"] += zpage.length
                counted["ephemeral_bytes"] += zpage.length * ephemeral
                home = frames.home[zpage.frame]
                if home and (frames.queue_of[home] == Queue.EPHEMERAL) != ephemeral:
                    raise Imbalance(f"frame {zpage.frame} holds a page of the other kind of pool")
                if zpage.offset + zpage.length > frames.frame_bytes:
                    raise Imbalance(f"frame {zpage.frame}: a zpage overruns it")
                if found.live[zpage.frame] and _overlap(found.entry[zpage.frame], entry):
                    raise Imbalance(f"frame {zpage.frame}: zpages overlap")
                found.live[zpage.frame] += 1
                found.entry[zpage.frame] = entry
    return {name: counted[name] for name in HELD_NOW}


def _overlap(one: int, other: int) -> bool:
    first, second = decode_zpage(one), decode_zpage(other)
    return first.offset < second.offset + second.length and second.offset < first.offset + first.length


def _mark_each_once(what: str, marks: memoryview, numbers: Iterable[int]) -> None:
    for number in numbers:
        if marks[number]:
            raise Imbalance(f"{what} {number} is there twice")
        marks[number] = 1


def _check_frames(store: Store, found: _Found) -> None:
    frames, tier = store.frames, store.tier
    states: Counter[int] = Counter()
    resident = below_count = 0
    for frame in range(1, frames.fresh_id):
        state = State(frames.state[frame])
        states[state] += 1
        live, home, below = frames.live[frame], frames.home[frame], frames.below[frame]
        if live != found.live[frame]:
            raise Imbalance(
                f"frame {frame} ({state.name}): the books say {live} zpages, the walk found {found.live[frame]}"
            )
        if not live and state not in (State.FREE, State.WRITEBACK):
            raise Imbalance(f"frame {frame} is {state.name} with nothing alive in it")
        in_ram = state in (State.ACTIVE, State.DIRTY, State.WRITEBACK, State.CLEAN)
        if bool(home) != in_ram or bool(below) != (state in (State.CLEAN, State.COLD)):
            raise Imbalance(f"frame {frame} is {state.name} with RAM slot {home} and slot {below} below")
        if home:
            resident += 1
            _mark_each_once("RAM slot", found.slots, (home,))
            if frames.frame_of[home] != frame:
                raise Imbalance(f"RAM slot {home} is frame {frame}'s home, and says it is {frames.frame_of[home]}'s")
        if below:
            below_count += 1
            _mark_each_once("slot below", found.belows, (below,))
            if not tier or not tier.is_used(below):
                raise Imbalance(f"frame {frame} is in slot {below} below, which is not in use")
    _mark_each_once("free frame id", found.free_ids, frames.free_ids())
    for frame in frames.free_ids():
        if frames.state[frame] != State.FREE:
            raise Imbalance(f"frame {frame} is on the free stack and {State(frames.state[frame]).name}")
    _compare("free frame ids", frames.free_id_count, states[State.FREE])
    _compare("frames in flight", frames.in_flight, states[State.WRITEBACK])
    _compare("cold frames", frames.cold, states[State.COLD])
    _compare("resident frames", frames.resident, resident)
    _mark_each_once("RAM slot", found.slots, frames.free_slots())
    _mark_each_once("RAM slot", found.slots, frames.fetch_slots())
    if frames.fetch_slot_count == FETCH_SLOTS:  # none is being read into
        _compare("RAM slots", frames.slot_count - 1, resident + frames.free_slot_count + FETCH_SLOTS)
    if tier and not frames.in_flight:
        _compare("slots in use below", tier.used_slots, below_count)


def _check_queues(store: Store) -> None:
    frames = store.frames
    expected = {
        Queue.PERSISTENT: (State.ACTIVE, State.DIRTY),
        Queue.EPHEMERAL: (State.ACTIVE, State.DIRTY),
        Queue.CLEAN: (State.CLEAN,),
    }
    waiting = 0
    for queue, states in expected.items():
        length = 0
        for slot in frames.slots_waiting(queue):
            length += 1
            frame = frames.frame_of[slot]
            if frames.state[frame] not in states or frames.queue_of[slot] != queue or frames.home[frame] != slot:
                raise Imbalance(f"frame {frame} ({State(frames.state[frame]).name}) waits in queue {queue.name}")
        _compare(f"length of queue {queue.name}", frames.queue_length[queue], length)
        waiting += length
    _compare("frames in queues or in flight", frames.resident - frames.in_flight, waiting)
