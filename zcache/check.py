"""check: walks the whole store and verifies that its books balance.

It holds the store's lock for as long as it takes (about a second for a million pages), so on a live swap device it is
a tool for diagnosis. Everything that is derived (live counts, queues, free stacks, slot maps, statistics) is computed
anew from the page tables and the frame table, and compared.
"""

from collections import Counter

from zcache.codec import NAMES, WORD
from zcache.entry import LOST, SAME_FILLED, decode_zpage
from zcache.errors import Imbalance
from zcache.pageframes import State
from zcache.pageframes.frames import FETCH_SLOTS, Queue
from zcache.statistics import HELD_NOW
from zcache.store import Store
from zcache.tmem import Kind


def check(store: Store) -> dict[str, int]:
    """Raises `Imbalance` with the first thing that is wrong; returns what was counted."""
    with store.lock:
        live_zpages, counted = _walk_tables(store)
        _compare("statistics", {name: getattr(store.statistics, name) for name in counted}, counted)
        _check_zpages(store, live_zpages)
        _check_frames(store, live_zpages)
        _check_queues(store)
        store.allocator.check(live_zpages)
    return counted


def _compare(what: str, kept: object, found: object) -> None:
    if kept != found:
        raise Imbalance(f"{what}: the books say {kept}, the walk found {found}")


def _walk_tables(store: Store) -> tuple[dict[int, list[tuple[int, int]]], dict[str, int]]:
    """All live zpages by frame as (offset, length), and what the statistics ought to say."""
    live: dict[int, list[tuple[int, int]]] = {}
    counted: Counter[str] = Counter()
    for thing in store.tmem.objects():
        ephemeral = thing.kind is Kind.EPHEMERAL
        for start, stop in thing.table.touched_runs(0, thing.page_count):
            for entry in thing.table.entries[start:stop].tolist():
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
                if zpage.codec not in NAMES:
                    raise Imbalance(f"an entry names codec {zpage.codec}")
                counted["same_filled_pages"] += zpage.codec == WORD
                counted["raw_pages"] += zpage.length == 4096
                counted["compressed_bytes"] += zpage.length
                counted["ephemeral_bytes"] += zpage.length * ephemeral
                kind = store.frames.queue_of[store.frames.home[zpage.frame]] == Queue.EPHEMERAL
                if store.frames.home[zpage.frame] and kind != ephemeral:
                    raise Imbalance(f"frame {zpage.frame} holds a page of the other kind of pool")
                live.setdefault(zpage.frame, []).append((zpage.offset, zpage.length))
    return live, {name: counted[name] for name in HELD_NOW}


def _check_zpages(store: Store, live_zpages: dict[int, list[tuple[int, int]]]) -> None:
    for frame, zpages in live_zpages.items():
        end = 0
        for offset, length in sorted(zpages):
            if offset < end or offset + length > store.frames.frame_bytes:
                raise Imbalance(f"frame {frame}: zpages overlap or overrun: {sorted(zpages)}")
            end = offset + length


def _check_frames(store: Store, live_zpages: dict[int, list[tuple[int, int]]]) -> None:
    frames = store.frames
    homes: list[int] = []
    belows: list[int] = []
    states: Counter[State] = Counter()
    for frame in range(1, frames.fresh_id):
        state = State(frames.state[frame])
        states[state] += 1
        _compare(f"live zpages of frame {frame} ({state.name})", frames.live[frame], len(live_zpages.get(frame, ())))
        home, below = frames.home[frame], frames.below[frame]
        in_ram = state in (State.ACTIVE, State.DIRTY, State.WRITEBACK, State.CLEAN)
        _compare(f"frame {frame} ({state.name}) in RAM", bool(home), in_ram)
        _compare(f"frame {frame} ({state.name}) below", bool(below), state in (State.CLEAN, State.COLD))
        if not frames.live[frame] and state not in (State.FREE, State.WRITEBACK):
            raise Imbalance(f"frame {frame} is {state.name} with nothing alive in it")
        if home:
            homes.append(home)
            _compare(f"owner of RAM slot {home}", frames.frame_of[home], frame)
        if below:
            belows.append(below)
    if live_zpages and max(live_zpages) >= frames.fresh_id:
        raise Imbalance(f"an entry names frame {max(live_zpages)}, which was never handed out")
    _compare("free frame ids", sorted(frames.free_ids()), [
        frame for frame in range(1, frames.fresh_id) if frames.state[frame] == State.FREE
    ])  # fmt: skip
    _compare("frames in flight", frames.in_flight, states[State.WRITEBACK])
    _compare("cold frames", frames.cold, states[State.COLD])
    _compare("resident frames", frames.resident, len(homes))
    every_slot = sorted(homes + frames.free_slots() + frames.fetch_slots())
    if frames.fetch_slot_count == FETCH_SLOTS and every_slot != list(range(1, frames.slot_count)):
        raise Imbalance("RAM slots are lost, or held twice")
    if store.tier and not frames.in_flight:
        _compare("slots in use below", store.tier.used(), sorted(belows))


def _check_queues(store: Store) -> None:
    frames = store.frames
    expected = {
        Queue.PERSISTENT: (State.ACTIVE, State.DIRTY),
        Queue.EPHEMERAL: (State.ACTIVE, State.DIRTY),
        Queue.CLEAN: (State.CLEAN,),
    }
    waiting = 0
    for queue, states in expected.items():
        slots = frames.slots_waiting(queue)
        waiting += len(slots)
        _compare(f"length of queue {queue.name}", frames.queue_length[queue], len(slots))
        for slot in slots:
            frame = frames.frame_of[slot]
            if frames.state[frame] not in states or frames.queue_of[slot] != queue or frames.home[frame] != slot:
                raise Imbalance(f"frame {frame} ({State(frames.state[frame]).name}) waits in queue {queue.name}")
    _compare("frames in queues or in flight", frames.resident - frames.in_flight, waiting)
