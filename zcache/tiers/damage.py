"""Damage: frames below that could not be had, until they are read after all, or nothing in them is
alive any more: their pages were written or trimmed. A network is not a disk: what could not be read
there is forgotten once whoever has it is within reach again.

Locking: the store's lock.
"""

from collections.abc import Callable
from typing import Final

from zcache.pageframes import PageFrames, State

#: Frames are remembered by name up to here, because a dead disk may hold a million.
REMEMBERED_FRAMES: Final = 4096

SEAL_BROKEN: Final = "failed their seal"
UNREADABLE: Final = "could not be read"


class Damage:
    """Of one store's frames, whichever tier they are in."""

    def __init__(self) -> None:
        self.frames: dict[int, tuple[int, str]] = {}  # frame to its birth, and what is wrong with it
        self.last_error = ""  # why one could not be read, the last time

    def mark(self, frame: int, birth: int, what: str) -> None:
        """A frame cannot be had: `SEAL_BROKEN` or `UNREADABLE`."""
        if len(self.frames) < REMEMBERED_FRAMES or frame in self.frames:
            self.frames[frame] = birth, what

    def unmark(self, frame: int) -> None:
        """A frame was read as it was written."""
        self.frames.pop(frame, None)

    def is_marked(self, frame: int, birth: int) -> bool:
        """Whether it could not be had, as it is now."""
        return self.frames.get(frame, (0, ""))[0] == birth

    def counts(self, frames: PageFrames, is_within_reach: Callable[[int], bool]) -> dict[str, int]:
        """How many are damaged still, by what is wrong with them. `is_within_reach` is asked of
        slots of those that could not be read: see `Below.is_within_reach`."""
        self.frames = {
            frame: (birth, what)
            for frame, (birth, what) in self.frames.items()
            if frames.birth[frame] == birth
            and frames.state[frame] != State.FREE
            and not (what == UNREADABLE and is_within_reach(frames.below[frame]))
        }
        found = [what for _, what in self.frames.values()]
        return {what: count for what in (SEAL_BROKEN, UNREADABLE) if (count := found.count(what))}
