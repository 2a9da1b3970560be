"""Readahead: frames that are read from below together with those that are asked for, while that
pays.

The pages that follow those asked for were, as likely as not, swapped out with them, and lie in the
frames that were written next: where such a frame follows on the disk, reading it along costs its
bytes and its seal, and no seek. It comes back whole, as a clean copy that gives way, and serves all
its pages. Only frames that continue the read on the disk, before or behind, are taken.

Whether it pays is measured: a frame that was read along is a *hit* if a get has used it by the time
that it leaves RAM, or that it has been looked at for the last time. After each `SAMPLE` outcomes
the window is doubled when half of them were hits, and halved when fewer than a quarter were; at 0
it is off, and one frame is tried at every `PROBE_EVERY`th fetch. (The kernel sizes its own swap
readahead by hits, too: `swapin_nr_pages` in mm/swap_state.c.)
"""

from typing import Final

from zcache.pageframes import PageFrames, State
from zcache.pages.entry import FRAME_MASK, SAME_FILLED
from zcache.statistics import Statistics

MAX_WINDOW: Final = 8
SAMPLE: Final = 16
PROBE_EVERY: Final = 64
#: Pages after those asked for whose frames are looked at: what a window of the densest frames would
#: hold, or less.
LOOKED_AT: Final = 256
#: Fetches for which a frame is watched; as many frames at most.
WATCHED: Final = 64


class Readahead:
    """One for a store; the caller holds its lock."""

    def __init__(self, frames: PageFrames, statistics: Statistics) -> None:
        self.window = 1  # frames
        self._frames = frames
        self._statistics = statistics
        self._fetches = 0
        self._watched: list[tuple[int, int, int, int]] = []  # frame, birth, RAM slot, fetch
        self._outcomes = self._hits = 0  # of this sample

    def choose(self, table: memoryview, stop: int, wanted: list[int]) -> list[int]:
        """Which frames to read with the `wanted` ones, which are COLD; the pages asked for end at
        page `stop`."""
        self._fetches += 1
        self._look_at_watched()
        window = self.window or int(not self._fetches % PROBE_EVERY)
        if not window:
            return []
        frames = self._frames
        state, below = frames.state, frames.below
        ends = {below[frame] + step for frame in wanted for step in (-1, 1)}
        chosen: list[int] = []
        seen = set(wanted)
        for entry in table[stop : stop + LOOKED_AT].tolist():
            frame = entry & FRAME_MASK
            if not 0 < entry < SAME_FILLED or frame in seen:
                continue
            seen.add(frame)
            if state[frame] == State.COLD and below[frame] in ends:
                chosen.append(frame)
                ends |= {below[frame] - 1, below[frame] + 1}
                if len(chosen) == window:
                    break
        return chosen

    def came(self, frame: int, is_kept: bool) -> None:
        """A frame that was chosen was read; whether it has found room in RAM."""
        frames = self._frames
        self._statistics.readahead_frames += 1
        if not is_kept:
            self._note(is_hit=False)
            return
        if len(self._watched) == WATCHED:
            self._note(is_hit=False)
            del self._watched[0]
        self._watched.append((frame, frames.birth[frame], frames.home[frame], self._fetches))

    def _look_at_watched(self) -> None:
        """Which of them were used, and which never will be."""
        frames = self._frames
        left = []
        for watched in self._watched:
            frame, birth, slot, fetch = watched
            if frames.home[frame] != slot or frames.birth[frame] != birth or self._fetches - fetch > WATCHED:
                self._note(is_hit=False)
            elif frames.referenced[slot]:
                self._note(is_hit=True)
            else:
                left.append(watched)
        self._watched = left

    def _note(self, is_hit: bool) -> None:
        self._statistics.readahead_hits += is_hit
        self._hits += is_hit
        self._outcomes += 1
        if self._outcomes == SAMPLE:
            if 2 * self._hits >= SAMPLE:
                self.window = min(max(2 * self.window, 1), MAX_WINDOW)
            elif 4 * self._hits < SAMPLE:
                self.window //= 2
            self._outcomes = self._hits = 0
