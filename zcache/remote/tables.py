"""Tables: what is known here of the copies that engines hold, slot by slot. It outlives the server.

- *generation*: how often the slot was written. It is part of the key, so each write has a key of
  its own, and a command that an engine runs late (it was paused; the network held it back) can
  neither overwrite nor remove a newer frame.
- *holders*: the incarnations that hold the slot's frame, two at most; 0 is none.
- *tail*: the frame's last 16 bytes. They stay here because of how engines round values up: jemalloc
  has a class for 64 KiB and the next is 80 KiB, and a value of 65,536 bytes with its header falls
  into that one (measured with MEMORY USAGE, Redis 7.0.15: 82,008 bytes; for 65,520: 65,624).

An *incarnation* is one life of an engine's memory, as a number of one byte. It stands for a lane
(which of our peers), a word (random, kept at the engine: one that was restarted empty has none) and
a run (the engine's own name for its process). What an engine held in another life is gone if the
word is another; if only the run is, it may be gone in part, and each copy has to be looked for.

Order of writes, for a server that is killed in the middle: a slot's generation is counted up before
anything is sent, and a holder is named when its engine has said that it holds the frame. What was
sent and never named is swept up (`zcache.remote.sweeper`).

Locking: `Copies.lock`, but for the generation and tail of a slot that is being written, which are
its writer's. Cost: 22 bytes a slot, 8 KiB for incarnations.
"""

from collections.abc import Callable, Collection
from typing import Final

from zcache.image.flat_array import FlatArray, count_bytes
from zcache.image.image import REMOTE_SECTIONS, Section

#: Bytes of each frame that stay here.
TAIL_BYTES: Final = 16

#: Incarnations that can be told apart, and the number that is none.
INCARNATIONS: Final = 256
NOBODY: Final = 0

GENERATION_MASK: Final = (1 << 32) - 1


def no_image(_section: str) -> Section | None:
    """Where the sections of tables without an image are."""
    return None


class Tables:
    """For slots 1 to `slot_count`."""

    def __init__(self, slot_count: int, section: Callable[[str], Section | None] = no_image) -> None:
        ids = slot_count + 1
        self.slot_count = slot_count
        generations, holders, tails, incarnations = (section(name) for name in REMOTE_SECTIONS)
        self._generation_table = FlatArray("I", ids, generations)
        self._holders_table = FlatArray("H", ids, holders)
        self._tail_table = FlatArray("B", ids * TAIL_BYTES, tails)
        self._incarnation_table = FlatArray("Q", 4 * INCARNATIONS, incarnations)
        self.generation = self._generation_table.view
        self.holders = self._holders_table.view
        self._tail = self._tail_table.view
        known = self._incarnation_table.view
        self.words = known[:INCARNATIONS]
        self.runs = known[INCARNATIONS : 2 * INCARNATIONS]
        self.lanes = known[2 * INCARNATIONS : 3 * INCARNATIONS]
        self._tags = known[3 * INCARNATIONS :]
        self._incarnation_table.populate(0, 4 * INCARNATIONS)

    def next_generation(self, slot: int) -> int:
        """For a write of the slot that is about to begin."""
        self.generation[slot] = generation = (self.generation[slot] + 1) & GENERATION_MASK
        return generation

    def keep_tail(self, slot: int, frame: memoryview) -> None:
        """The end of a frame that is about to be sent."""
        self._tail[slot * TAIL_BYTES : (slot + 1) * TAIL_BYTES] = frame[-TAIL_BYTES:]

    def put_tail(self, slot: int, frame: memoryview) -> None:
        """The end of a frame whose rest has come."""
        frame[-TAIL_BYTES:] = self._tail[slot * TAIL_BYTES : (slot + 1) * TAIL_BYTES]

    def holders_of(self, slot: int) -> tuple[int, int]:
        """The incarnations that hold it."""
        both = self.holders[slot]
        return both & 0xFF, both >> 8

    def number_of(self, lane: int, word: int, run: int, taken: Collection[int] = ()) -> int:
        """The number of an incarnation, given now if it has none; 0: all are in use. `taken` are
        those that hold something, and those of engines that are there, whatever they hold."""
        words, runs, lanes = self.words, self.runs, self.lanes
        for number in range(1, INCARNATIONS):
            if words[number] == word and runs[number] == run and lanes[number] == lane:
                return number
        if number := self._unused(taken):
            words[number] = 0
            lanes[number] = lane
            runs[number] = run
            words[number] = word  # last: an incarnation without a word is none
        return number

    def count_of(self, number: int) -> int:
        """How many copies an incarnation holds."""
        return count_bytes(self.holders.cast("B"), number)

    def _unused(self, taken: Collection[int]) -> int:
        """One that never was; or if there is none, one that is not taken; 0: all are."""
        # Fresh ones first, though one that holds nothing is at hand. Copies on the list of dead
        # ones may still go by its number, and would be removed at an engine that has them by right;
        # and a reader who has asked under it may yet say that the copy is missing. After 255
        # restarts there is no choice: what is removed wrongly is missed, and made again from the
        # other copy.
        numbers = range(1, INCARNATIONS)
        fresh = (number for number in numbers if not self.words[number])
        empty = (number for number in numbers if number not in taken)
        return next(fresh, 0) or next(empty, NOBODY)

    def tag(self, lane: int) -> bytes:
        """The hash tag of a lane of a Cluster, as it was noted; b"": none was."""
        return self._tags[lane].to_bytes(8, "little").rstrip(b"\0")

    def note_tag(self, lane: int, tag: bytes) -> None:
        """A lane's hash tag, of at most 8 bytes. (What no lane has is `reach`'s.)"""
        self._tags[lane] = int.from_bytes(tag, "little")

    def fault_ahead(self, stop: int) -> None:
        """Populate the rows before slot `stop`. Not for the I/O path."""
        self._generation_table.fault_ahead(stop)
        self._holders_table.fault_ahead(stop)
        self._tail_table.fault_ahead(stop * TAIL_BYTES)
