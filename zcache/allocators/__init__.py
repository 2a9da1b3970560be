"""Allocators: where in which pageframe a zpage goes. All keep one contract.

The contract, which every allocator's contract suite runs (the caller holds the store's lock
throughout):

- `place` takes a request's zpages together and writes their bytes into frames of the given kind of
  pool; zpages of different kinds never share a frame. It appends an entry for each to `entries` and
  returns the index of the first that found no room; calling again from there, after room was made,
  goes on. It takes frames from `PageFrames` and allocates none itself.
- `release` drops the zpages that entries name. A frame whose last zpage goes is given back, unless
  it is in flight.
- `retire` is told that a frame is on its way out and takes no more zpages, unless it refuses, and
  `restore` that it did not get there: what room it has may be offered again, with that of zpages
  that were released meanwhile. `evict` throws an ephemeral frame away, live zpages and all, and
  says whose they were.
- `frames_for` is a promise: with so many frames, and while the tier works, no put fails for lack of
  room.
- What a zpage's bytes were they stay, in place, until it is released.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from zcache.pageframes import State
from zcache.pageframes.view import Copied, FramesView
from zcache.pages.tmem import Kind

__all__ = ["Allocator", "AllocatorView", "EntriesOf", "Found", "ReleaseBelow"]


class Found(Protocol):
    """What a walk of the page tables finds of each frame, by its id."""

    live: memoryview  # how many zpages
    live_bytes: memoryview  # of them all
    place: memoryview  # one of them, as the bytes from `place & 0xFFFF` to `place >> 16`


class AllocatorView(Protocol):
    """An allocator's books as they were at one moment."""

    def check(self, found: Found) -> None:
        """Compare them with what was found. Raises `Imbalance`."""


class Allocator(Protocol):
    """Places zpages in frames."""

    name: str
    frame_bytes: int
    reserve_frames: int  # RAM slots that puts leave alone
    min_budget_frames: int  # of RAM: a request must find room, and the watermarks need a few frames to work with
    max_zpage_bytes: int  # a longer zpage gains nothing over the raw page

    @staticmethod
    def frames_for(page_count: int) -> int:
        """How many frames, in RAM and below together, hold so many pages for sure, whatever is in
        them and however they come and go."""

    def place(self, kind: Kind, data: bytes, tags: list[int], entries: list[int], owner: int) -> int:
        """Place the zpages of `tags[len(entries):]`. `data` is those of all tags, one behind the
        other: a tag is an entry without a place, and says how long its zpage is, or that there is
        none. `owner` is the word that names the first tag's page (see `evict`)."""

    def place_one(self, kind: Kind, body: bytes, tag: int, owner: int) -> int:
        """The same for one zpage: its entry, or 0 if it found no room."""

    def release(self, entries: Sequence[int]) -> None:
        """Drop zpages; each entry must be a live zpage's."""

    @property
    def kept_frames(self) -> int:
        """How many frames `retire` keeps in RAM."""

    def retire(self, frame: int) -> bool:
        """Offer no more room in a frame that is about to leave RAM. False: it stays, because it is
        being filled."""

    def restore(self, frame: int) -> None:
        """Offer the room of a frame that could not leave RAM; it is DIRTY, and in its queue."""

    def evict(self, frame: int) -> list[int]:
        """Throw away an ephemeral frame; returns the owners of what was alive in it."""

    def populate_for_ephemeral(self) -> None:
        """Fault in what only ephemeral zpages take. Not for the I/O path."""

    def inherit(self, entry: int) -> None:
        """Taking over, first: note a live zpage of a persistent frame, in RAM or below. Raises
        `Imbalance`."""

    def inherited_state(self, frame: int) -> State:
        """Then, with all its zpages noted: the state of a frame that is in RAM only. Raises
        `Imbalance`."""

    def offer_inherited(self, beat: Callable[[], None]) -> None:
        """Last, when frames are in their queues: those that are ACTIVE take zpages again. `beat` is
        called now and then."""

    def view(self, copied: Copied, frames: FramesView) -> AllocatorView:
        """Its books as they are now, each array `copied`, over a view of its frames at the same
        moment."""


class ReleaseBelow(Protocol):
    """Gives a slot of the tier below back (0: there is none)."""

    def __call__(self, slot: int) -> None: ...


class EntriesOf(Protocol):
    """The page-table entries of the object that has a handle (None: no object has it)."""

    def __call__(self, handle: int) -> memoryview | None: ...
