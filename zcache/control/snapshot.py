"""A snapshot: the store's books as they were at one moment, to be read at leisure while the store
goes on.

It is copied under the store's lock, by `memcpy`: milliseconds for a million pages. The memory for
it (8 bytes a page, 11 to 15 a frame id, 19 a RAM slot, 1 a slot below) is taken, and populated,
before: under the lock nothing is asked of the system.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from zcache.errors import EnvironmentProblem
from zcache.linux import memory
from zcache.linux.memory import anonymous_memory
from zcache.pageframes.view import view_of
from zcache.statistics import HELD_NOW
from zcache.store.store import Store

#: What the books may grow by while the memory for their copy is being populated, beside an eighth.
MARGIN_BYTES: Final = 1 << 20


@contextlib.contextmanager
def populating() -> Iterator[None]:
    """Around what populates memory ahead: if there is not enough, `EnvironmentProblem`. A page
    fault in Python is taken with the GIL held, so that a server that was short of memory would wait
    there for what only it can bring about."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel that cannot: it is touched as it is used
            raise EnvironmentProblem(f"no memory to copy and walk the books: {error.strerror}") from None


class Room:
    """Memory for copies. At first it only counts how much they take; once it is made, it holds
    them."""

    def __init__(self) -> None:
        self._used_bytes = 0
        self._memory: memoryview | None = None

    def make(self) -> None:
        """Take the memory that was counted, and some more."""
        with populating():
            copies = memoryview(anonymous_memory(self._used_bytes + self._used_bytes // 8 + MARGIN_BYTES))
            memory.populate(copies)
        self._memory, self._used_bytes = copies, 0

    def copy(self, original: memoryview) -> memoryview:
        """A copy with the same items, or the original while it only counts; raises
        `EnvironmentProblem` if it does not fit."""
        start = self._used_bytes
        self._used_bytes += -(-original.nbytes // 8) * 8
        if self._memory is None or not original.nbytes:
            return original
        if self._used_bytes > len(self._memory):
            raise EnvironmentProblem("the store grew while its books were being copied; ask again")
        part = self._memory[start : start + original.nbytes]
        part[:] = original.cast("B")
        return part.cast(original.format)  # type: ignore[call-overload, no-any-return]


class Snapshot:
    """`frames` and `allocator` are views of the store's, with arrays of their own; made under the
    store's lock."""

    def __init__(self, store: Store, room: Room) -> None:
        self.frames = view_of(store.frames, room.copy)
        self.allocator = store.allocator.view(room.copy, self.frames)
        self.slots_below = store.below.slot_count
        self.used_below_count = store.below.used_slots
        self.flights_below = sum(place.flights for place in store.below.places)
        self._maps_below = [(place, room.copy(place.tier.used_map())) for place in store.below.places]
        #: For each object: its pool's kind, and its touched blocks of entries.
        self.tables = [
            (
                thing.kind,
                [
                    room.copy(thing.table.entries[start:stop])
                    for start, stop in thing.table.touched_runs(0, thing.page_count)
                ],
            )
            for thing in store.tmem.objects()
        ]
        self.held_now = {name: getattr(store.statistics, name) for name in HELD_NOW}

    def is_used_below(self, slot: int) -> bool:
        """Whether the slot is some tier's, and reserved there."""
        for place, used in self._maps_below:
            if slot <= place.last:
                return bool(used[slot - place.before])
        return False


def take_snapshot(store: Store) -> Snapshot:
    """Takes the store's lock for as long as the copy takes; raises `EnvironmentProblem` if the
    store grew too fast, or there is no memory."""
    room = Room()
    Snapshot(store, room)
    room.make()
    with store.lock:
        return Snapshot(store, room)
