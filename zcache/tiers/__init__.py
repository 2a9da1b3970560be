"""Tiers below RAM: places that hold whole frames, sealed, until they are asked for again.

The contract, which every tier's contract suite runs:

- Slots are numbered from 1; slot 0 is the tier's own. `reserve` and `release` are bookkeeping: they
  are called under the store's lock, never block and never touch the medium.
- `write` and `read` move whole frames between consecutive slots and buffers in RAM. They are called
  without any lock, may take long, and raise `OSError` when the medium fails; a short transfer is a
  failure. What a failed write leaves in its slots is undefined; all other slots keep what they
  held.
- `read` gives back what the last `write` to a slot put there. Proving it is the caller's seal's
  work, not the tier's.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

__all__ = ["Tier", "WarmTier"]


class Tier(Protocol):
    """Room for `slot_count` frames below RAM."""

    slot_count: int
    is_prompt: bool  # whether a put that waits for room may write here

    @property
    def used_slots(self) -> int:
        """How many slots are reserved."""

    @property
    def free_slots(self) -> int:
        """How many slots may be reserved now."""

    def reserve(self, count: int) -> tuple[int, int]:
        """Reserve up to `count` consecutive free slots; returns the first and how many (0: the tier
        is full)."""

    def take_over(self, slot: int) -> None:
        """Mark a slot as in use by a frame that a predecessor wrote; raises `Imbalance` if it
        cannot be."""

    def release(self, slot: int) -> None:
        """Give one slot back."""

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """Write frames to consecutive slots."""

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """Fill buffers from consecutive slots."""

    def read_again(self, slot: int, frame: memoryview, is_right: Callable[[], bool]) -> None:
        """Read one frame again, because what was read is not what was written: from each copy that
        there is, until `is_right` says so of what is in the buffer. What it says last, holds."""

    def fault_ahead(self) -> None:
        """Populate the bookkeeping beyond what is in use; not for the I/O path."""

    def used_map(self) -> memoryview:
        """A byte for each slot: whether it is reserved (for `check`)."""

    def close(self) -> None:
        """Let go of the medium."""


@runtime_checkable
class WarmTier(Tier, Protocol):
    """A tier whose coldest frames go on to the next one (`zcache.reclaim.demotion`). Its slots are
    handed out in turn."""

    next_slot: int
    was_read: memoryview  # of each slot, a byte: since somebody has looked and taken note

    @property
    def capacity_slots(self) -> int:
        """How many frames may be there, as things stand; there may be more."""

    def is_within_reach(self, slot: int) -> bool:
        """Whether somebody has what is there, and may be asked for it now: that it could not be
        read a while ago says nothing any more. Never blocks."""

    def is_known_dead(self, slot: int) -> bool:
        """Whether all who have what is there have failed for as long as anybody waits
        (`backoff.PATIENCE_SECONDS`), or nobody has it. Never blocks."""

    def read_to_move(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """As `read`; it does not count as one."""
