"""What lies outside of the keeper and its servers, keeps the swap safe, and may be changed by
others: the limit of the control group, kernel settings and OOM scores, and what is frozen for a
suspend. It is looked at again and again, and put back.

Not while nobody serves: what the kernel does for it may wait for somebody who waits for memory, and
that for a server, which the keeper is to replace. Whoever calls sees to that.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from zcache.keeper import voice
from zcache.keeper.frozen import Forgotten
from zcache.keeper.reserve import Reserve
from zcache.keeper.voice import Complaints
from zcache.keeper.watched import Watched
from zcache.linux import cgroup

#: How often the limit of the control group is looked at, and what else others may change.
GROUP_SECONDS: Final = 1.0


class Surroundings:
    """Of one keeper."""

    __slots__ = ("_complaints", "_forgotten", "group", "next_group_seconds", "next_watch_seconds", "watched")

    def __init__(self, frozen: Path, reserve: Reserve, complaints: Complaints) -> None:
        """`frozen` is where the record of what is frozen for a suspend may be."""
        self._complaints = complaints
        self._forgotten = Forgotten(frozen)
        self.group = cgroup.SwaplessGroup() if cgroup.is_swapless() else None
        self.watched = Watched(reserve)
        self.next_group_seconds = self.next_watch_seconds = 0.0

    def keep_swapless(self) -> None:
        """What starts later must not be swapped out either, and somebody may have taken the group's
        limit away."""
        if self.group is None or time.monotonic() < self.next_group_seconds:
            return
        self.next_group_seconds = time.monotonic() + GROUP_SECONDS
        if self.group.holds():
            return
        try:
            self.group.put_back()
        except OSError as error:
            lost = f"{self.group.path} has lost {cgroup.LIMIT}=0"
            self._complaints.complain(f"WARNING: {lost}, and it cannot be put back: {error.strerror}")
        else:
            voice.say(f"{self.group.path} had lost {cgroup.LIMIT}=0, which keeps a new server out of swap: put back")

    def is_watch_due(self) -> bool:
        """Whether it is time for `put_back`."""
        if time.monotonic() < self.next_watch_seconds:
            return False
        self.next_watch_seconds = time.monotonic() + GROUP_SECONDS
        return True

    def put_back(self, pids: Iterable[int]) -> None:
        """What others have changed of settings and of scores; `pids` are the servers'."""
        for line in self.watched.put_back(pids):
            self._complaints.complain(line)

    def thaw_forgotten(self) -> None:
        """What was frozen for a suspend, if nobody did afterwards."""
        thawed = self._forgotten.look()
        if thawed:
            nobody = "nobody did after `zcache sleep pre` (`zcache sleep post` does)"
            voice.say(f"thawing {thawed} control groups: {nobody}")
