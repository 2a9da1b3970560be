"""Room: how many frames of ours each peer may be given, and who is given the next ones.

Peers that die together (two lanes at one primary of a Cluster) are one place: of a frame's two
copies only one is to be there.

Nothing here is locked: figures may be late, and an engine that has no room says so.
"""

from collections.abc import Callable, Sequence
from typing import Final

from zcache.remote.peer import Peer

#: Room that nobody has set a limit to, in frames.
UNLIMITED: Final = 1 << 40


class Room:
    """At `peers`, of which each holds `at[lane]` frames, that cost it `paid_bytes` each."""

    def __init__(self, peers: Sequence[Peer], at: Sequence[int], paid_bytes: int) -> None:
        self._peers = peers
        self._at = at
        self._paid_bytes = paid_bytes

    def of(self, peer: Peer) -> int:
        """How many more frames a peer may be given; 0 when it takes none now."""
        if not peer.takes_frames():
            return 0
        if peer.limit_bytes is None:
            return UNLIMITED
        return max(self.limit(peer) - self._at[peer.lane], 0)

    def limit(self, peer: Peer, unlimited: int = UNLIMITED) -> int:
        """How many frames it may hold in all, by what it said last; so many if it set no limit."""
        return unlimited if peer.limit_bytes is None else peer.limit_bytes // self._paid_bytes

    def most(self, peer: Peer, unlimited: int) -> int:
        """The same, for as long as it is there."""
        return 0 if peer.is_gone else self.limit(peer, unlimited)

    def is_over(self, peer: Peer) -> bool:
        """Whether it holds more of ours than it may."""
        return self._at[peer.lane] > self.limit(peer)

    def by_node(self, figure: Callable[[Peer], int], total: Callable[[list[int]], int] = sum) -> list[int]:
        """A figure of each peer, put together for those that die together."""
        found: dict[object, list[int]] = {}
        for peer in self._peers:
            found.setdefault(peer.node, []).append(figure(peer))
        return [total(each) for each in found.values()]

    def choose(self, frame_count: int, copies: int) -> list[Peer]:
        """As many peers as there are to be copies, or as can be had, no two of which die together:
        those with most room, or which hold least."""
        able = [(self.of(peer), -self._at[peer.lane], -peer.lane, peer) for peer in self._peers]
        found: dict[object, Peer] = {}
        for *_, peer in sorted((each for each in able if each[0] >= frame_count), reverse=True):
            found.setdefault(peer.node, peer)
        return list(found.values())[:copies]
