"""Taking over the frames that a predecessor left in an image: each where it was, all else free, the
oldest first.

It works on a new `PageFrames` from the inside, and is apart from it because a server does it once,
and most never. It runs when memory may be short: beside the frames' own tables it takes 4 bytes for
each frame in RAM, and makes no list of them all.
"""

import heapq
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from zcache.errors import Imbalance
from zcache.pageframes.frames import PageFrames
from zcache.pageframes.queues import Queue
from zcache.pageframes.slots import FETCH_SLOTS, NONE
from zcache.pageframes.states import State

#: Frames that are sorted at once: 300 KiB of Python's numbers.
SORTED_RUN: Final = 1 << 12


def inherit(frames: PageFrames, frame: int, ram_only_state: Callable[[int], State]) -> None:
    """Go on with a frame that page-table entries name (`live` says how many), where a predecessor
    left it.

    `ram_only_state` tells what a frame is that is not below. Raises `Imbalance` if it is nowhere,
    or where another is.
    """
    slot, below = frames.home[frame], frames.below[frame]
    if not slot and not below:
        raise Imbalance(f"frame {frame} is nowhere, and {frames.live[frame]} entries name it")
    if slot:
        if slot >= frames.slot_count or frames.frame_of[slot]:
            raise Imbalance(f"frame {frame} is in RAM slot {slot}, which is another's or is not there")
        frames.frame_of[slot] = frame
    else:
        frames.cold += 1
    frames.state[frame] = State.COLD if not slot else State.CLEAN if below else ram_only_state(frame)


def free_the_rest(frames: PageFrames, highest: int, beat: Callable[[], None]) -> None:
    """Once all frames are inherited, none above `highest`: all other ids and slots are free, and
    the queues are in the order of births. `beat` is called now and then."""
    live, slots = frames.live, frames.slots
    frames.fresh_id = highest + 1
    for table in (frames.home_table, frames.below_table):
        places = table.view
        for start, stop in table.touched():
            for frame in beating(range(start, stop), beat):
                if places[frame] and not live[frame]:
                    places[frame] = NONE
    for frame in beating(range(highest, 0, -1), beat):
        if not live[frame]:
            frames.free_ids[frames.free_id_count] = frame
            frames.free_id_count += 1
    for frame in beating(_by_birth(frames), beat):
        queue = Queue.CLEAN if frames.state[frame] == State.CLEAN else Queue.PERSISTENT
        frames.queues.link_youngest(frames.home[frame], queue)
    # What has memory is there for reads first, and leaves the budget last.
    has_memory = frames.memory.slots_with_memory()
    slots.fetch_count = slots.free_count = 0
    for is_there in (1, 0):
        for slot in beating(range(frames.slot_count - 1, 0, -1), beat):
            if frames.frame_of[slot] or has_memory[slot] != is_there:
                continue
            if slots.fetch_count < FETCH_SLOTS:
                slots.give_fetch(slot)
            else:
                slots.give(slot)


def _by_birth(frames: PageFrames) -> Iterator[int]:
    """The frames in RAM, the oldest first: runs of them are sorted by themselves, and merged."""
    birth = frames.birth.__getitem__
    runs = []
    for start in range(0, frames.slot_count, SORTED_RUN):
        resident = filter(None, frames.frame_of[start : start + SORTED_RUN])
        runs.append(array("I", sorted(resident, key=birth)))
    return heapq.merge(*runs, key=birth)


def beating(items: Iterable[int], beat: Callable[[], None]) -> Iterator[int]:
    """The items; `beat` is called at every 65,536th, so that nobody takes this for a server that
    hangs."""
    for number, item in enumerate(items):
        if not number & 0xFFFF:
            beat()
        yield item
