"""A view of the frames' books for an audit: what they were at one moment, to be read and not
changed, while frames come and go.

Frames' bytes, births and seals are not in it, nor is anything that an audit has no use for.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from zcache.pageframes.frames import PageFrames
from zcache.pageframes.queues import Queue

#: Copies an array: the copy has the same items.
Copied = Callable[[memoryview], memoryview]


class FramesView(NamedTuple):
    """Arrays are as long as they are in use: of frames, by their ids, to `fresh_id` (exclusive); of
    RAM slots, to `slot_count`."""

    frame_bytes: int
    fresh_id: int
    slot_count: int
    state: memoryview
    live: memoryview
    home: memoryview
    below: memoryview
    frame_of: memoryview
    queue_of: memoryview
    newer: memoryview  # of the queues' heads, too, beyond the slots
    queue_length: list[int]
    free_ids: memoryview
    free_slots: memoryview
    absent_slots: memoryview
    fetch_slots: memoryview  # that nothing is being read into
    in_flight: int
    cold: int
    resident: int

    def slots_waiting(self, queue: Queue) -> Iterator[int]:
        """The RAM slots in a queue, oldest first."""
        head = self.slot_count + queue
        slot = self.newer[head]
        while slot != head:
            yield slot
            slot = self.newer[slot]


def view_of(frames: PageFrames, copied: Copied) -> FramesView:
    """The books as they are now, each array `copied` as far as it is in use; under the store's
    lock."""
    ids, count = frames.fresh_id, frames.slot_count
    queues, slots = frames.queues, frames.slots
    return FramesView(
        frame_bytes=frames.frame_bytes,
        fresh_id=ids,
        slot_count=count,
        state=copied(frames.state[:ids]),
        live=copied(frames.live[:ids]),
        home=copied(frames.home[:ids]),
        below=copied(frames.below[:ids]),
        frame_of=copied(memoryview(frames.frame_of)[:count]),
        queue_of=copied(memoryview(queues.queue_of)[:count]),
        newer=copied(memoryview(queues.newer)[: count + len(Queue)]),
        queue_length=list(queues.queue_length),
        free_ids=copied(frames.free_ids[: frames.free_id_count]),
        free_slots=copied(memoryview(slots.free)[: slots.free_count]),
        absent_slots=copied(slots.absent()),
        fetch_slots=copied(memoryview(slots.fetch)[: slots.fetch_count]),
        in_flight=frames.in_flight,
        cold=frames.cold,
        resident=frames.resident,
    )
