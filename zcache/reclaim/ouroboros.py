"""Ouroboros: the oldest ephemeral frame is eaten by whatever needs its RAM, also by what is
ephemeral itself: a cache that eats its own tail.

Its pages are copies that may be gone at the next get, so nothing is written anywhere. That is why
it comes before anything persistent leaves RAM.
"""

from zcache.allocators import Allocator
from zcache.pageframes import PageFrames
from zcache.pageframes.transitions import oldest_ephemeral
from zcache.pages.tmem import Kind, Tmem
from zcache.statistics import Statistics


class Ouroboros:
    """Of the ephemeral frames of a store; all methods are called under its lock."""

    def __init__(self, frames: PageFrames, allocator: Allocator, tmem: Tmem, statistics: Statistics) -> None:
        self._frames = frames
        self._allocator = allocator
        self._tmem = tmem
        self._statistics = statistics

    def eat(self) -> bool:
        """Something persistent takes the RAM of the oldest ephemeral frame; False if there is
        none."""
        has_eaten = self.evict_oldest()
        self._statistics.pers_ate_eph += has_eaten
        self._statistics.pers_ate_eph_failed += not has_eaten
        return has_eaten

    def eat_tail(self) -> bool:
        """Something ephemeral takes the RAM of the oldest ephemeral frame; False if there is
        none."""
        has_eaten = self.evict_oldest()
        self._statistics.eph_ate_tail += has_eaten
        self._statistics.eph_ate_tail_failed += not has_eaten
        return has_eaten

    def evict_oldest(self) -> bool:
        """Throw the oldest ephemeral frame away, its pages and all; False if there is none."""
        frame = oldest_ephemeral(self._frames)
        if not frame:
            return False
        statistics = self._statistics
        owners = self._allocator.evict(frame)
        for owner in owners:
            statistics.account([self._tmem.forget(owner)], Kind.EPHEMERAL, -1)
        statistics.evicted_ephemeral_frames += 1
        statistics.evicted_ephemeral_pages += len(owners)
        return True
