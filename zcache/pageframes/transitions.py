"""How frames leave RAM and come back: the transitions of `zcache.pageframes.states` beyond taking
and giving, which is in `zcache.pageframes.frames`.

Each works on a `PageFrames` from the inside, moves one or a few frames from one state to another,
and keeps queues, slots and counts in step. Which frame leaves first is decided here: the oldest of
its queue that was not referenced since it was last looked at. Why one must go is not known here,
nor who reads and writes the tier.

Locking: all are called under the store's lock.
"""

from collections.abc import Callable
from typing import Final

from zcache.pageframes.frames import PageFrames
from zcache.pageframes.queues import Queue
from zcache.pageframes.slots import NONE
from zcache.pageframes.states import State

#: Frames that are given one more round at a time, by whoever looks for one to eat: some 20 us.
SECOND_CHANCES: Final = 32


def isolate_oldest(frames: PageFrames, limit: int, retire: Callable[[int], bool]) -> list[int]:
    """Take up to `limit` of the oldest persistent frames off their queue and mark them WRITEBACK.

    `retire(frame)` is called just before, and may keep the frame where it is. A frame referenced
    since it was last looked at goes to the young end instead; a call looks at `2 * limit` frames at
    most (and those that are kept), so that a queue of referenced frames costs bounded work and
    still yields.
    """
    queues = frames.queues
    chosen: list[int] = []
    kept: list[int] = []
    head = queues.slot_count + Queue.PERSISTENT
    second_chances = limit
    while len(chosen) < limit:
        slot = queues.newer[head]
        if slot == head:
            break
        queues.unlink(slot)
        if queues.referenced[slot] and second_chances:
            second_chances -= 1
            queues.link_youngest(slot, Queue.PERSISTENT)
            continue
        frame = frames.frame_of[slot]
        if not retire(frame):
            kept.append(slot)
            continue
        frames.move(frame, State.WRITEBACK)
        chosen.append(frame)
    for slot in reversed(kept):
        queues.link_oldest(slot, Queue.PERSISTENT)
    frames.in_flight += len(chosen)
    return chosen


def land(frames: PageFrames, frame: int, below: int, birth: int, seal: bytes) -> int:
    """End of a flight that arrived: CLEAN, or FREE if nothing in it is alive any more.

    Returns the slot below to be freed (0: none)."""
    frames.in_flight -= 1
    frames.birth[frame] = birth
    frames.seal[frame * frames.seal_bytes : (frame + 1) * frames.seal_bytes] = seal
    frames.below[frame] = below  # last: whoever finds a frame below finds its seal
    frames.move(frame, State.CLEAN)
    frames.queues.link_youngest(frames.home[frame], Queue.CLEAN)
    return frames.give(frame) if not frames.live[frame] else NONE


def abort(frames: PageFrames, frame: int, restore: Callable[[int], None]) -> None:
    """End of a flight that failed: the frame is the oldest of those that wait again (FREE if
    nothing in it is alive), and DIRTY when `restore(frame)` is called."""
    frames.in_flight -= 1
    frames.move(frame, State.DIRTY)
    frames.queues.link_oldest(frames.home[frame], Queue.PERSISTENT)
    if frames.live[frame]:
        restore(frame)
    else:
        frames.give(frame)


def adopt(frames: PageFrames, frame: int, slot: int) -> int:
    """Make the fetch slot `slot`, filled with the COLD `frame`, its home: COLD -> CLEAN.

    Returns the slot that takes the other's place beside the budget: a free one or the oldest CLEAN
    frame's. Without either there is no room, nothing changes and `slot` itself is returned.
    """
    slots = frames.slots
    if slots.free_count:
        slots.free_count -= 1
        spare = slots.free[slots.free_count]
    elif frames.queue_length[Queue.CLEAN]:
        spare = frames.vacate_oldest_clean()
    else:
        return slot
    frames.move(frame, State.CLEAN)
    frames.cold -= 1
    frames.home[frame] = slot
    frames.frame_of[slot] = frame
    frames.queues.link_youngest(slot, Queue.CLEAN)
    return spare


def keep_in_ram(frames: PageFrames, frame: int) -> int:
    """CLEAN -> DIRTY, the oldest of those that wait: what is below is given up. Returns that slot,
    to be freed."""
    below, slot = frames.below[frame], frames.home[frame]
    frames.queues.unlink(slot)
    frames.move(frame, State.DIRTY)
    frames.below[frame] = NONE
    frames.queues.link_oldest(slot, Queue.PERSISTENT)
    return below


def ephemeral_gives_way(frames: PageFrames) -> bool:
    """Whether an ephemeral frame has to be eaten before a frame is adopted: no slot is free, and of
    what gives way there is more ephemeral than CLEAN."""
    length = frames.queue_length
    return not frames.slots.free_count and length[Queue.EPHEMERAL] > length[Queue.CLEAN]


def has_room_for(frames: PageFrames, window: int) -> bool:
    """Whether that many frames could be adopted without dropping one that was only just."""
    return frames.slots.free_count + frames.queue_length[Queue.CLEAN] > window + 1


def oldest_ephemeral(frames: PageFrames) -> int:
    """The ephemeral frame that has waited longest and was not referenced since it was last looked
    at; 0 if there is none. Those that were go to the young end; after `SECOND_CHANCES` of them, the
    oldest has had its chance."""
    queues = frames.queues
    head = queues.slot_count + Queue.EPHEMERAL
    for _ in range(SECOND_CHANCES):
        slot = queues.newer[head]
        if slot == head:
            return NONE
        if not queues.referenced[slot]:
            break
        queues.unlink(slot)
        queues.link_youngest(slot, Queue.EPHEMERAL)
    return frames.frame_of[queues.newer[head]]


def drop_oldest_clean(frames: PageFrames) -> bool:
    """CLEAN -> COLD for the frame that has been clean longest; its slot is free. False: there is
    none."""
    if not frames.queue_length[Queue.CLEAN]:
        return False
    frames.slots.give(frames.vacate_oldest_clean())
    return True
