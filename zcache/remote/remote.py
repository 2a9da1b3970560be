"""The remote place of one server, put together: its tier, its mender, and what there is to say of
it."""

from collections.abc import Callable
from typing import Any, Final

from zcache.clock import Clock
from zcache.image.image import Image
from zcache.remote.accounts import name_of
from zcache.remote.copies import Copies
from zcache.remote.engines import Engines
from zcache.remote.mender import Mender
from zcache.remote.peer import Peer
from zcache.remote.remote_front import RemoteFront
from zcache.remote.remote_tier import RemoteTier, pairs_of
from zcache.remote.tables import Tables, no_image
from zcache.tiers import Tier

__all__ = ["Remote"]

#: Room that has been too little for less than that is not: copies that are under way, or yet to be
#: removed, are counted as others'.
SHORT_SECONDS: Final = 10.0
#: One in `1 << SHORT_SHIFT` of what was promised may lack room without a word, for the same reason.
SHORT_SHIFT: Final = 5


class Remote:
    """Over `engines`, which were checked. With `frame_count` frames that they hold twice; or, if
    `front` is true, with one copy of so many of the backing's."""

    tier: RemoteTier | RemoteFront

    def __init__(
        self,
        engines: Engines,
        frame_count: int,
        frame_bytes: int,
        backing: Tier | None,
        image: Image | None,
        secret: bytes,
        *,
        is_front: bool,
        report: Callable[[str], None],
    ) -> None:
        self._clock = clock = Clock()
        self._short_since: float | None = None  # engines have had too little room
        self.name = name_of(secret)
        slot_count = backing.slot_count if is_front and backing else frame_count
        tables = Tables(slot_count, image.section if image else no_image)
        is_new = image is None or image.epoch == 1
        self.copies = Copies(tables, engines.make_peers(self.name, tables, is_new), frame_bytes, clock)
        if is_front and backing:
            front = RemoteFront(backing, self.copies, frame_count)
            self.tier = front
            self.mender = Mender(self.copies, engines, front.is_used, 1, clock, report)
            self.mender.also = front.send_staged
        else:
            self.tier = RemoteTier(slot_count, self.copies, lambda: not (backing and backing.free_slots))
            self.mender = Mender(self.copies, engines, self.tier.is_used, 2, clock, report)
            self.mender.missing = self._missing
            self.mender.also = lambda _go_on: self._look_at_room()
        self.mender.connect_all()

    @property
    def room_frames(self) -> int:
        """How many there is room for at the engines, by what they say."""
        return self.tier.capacity_slots if isinstance(self.tier, RemoteTier) else self.tier.limit_slots

    def promised_room(self) -> int:
        """How many frames there would be room for at the engines, each twice, by what they said
        last: if those were there that are out of reach, whose trouble is another."""

        def most(peer: Peer) -> int:
            limit_bytes = peer.limit_bytes
            return self.tier.slot_count if limit_bytes is None else limit_bytes // self.copies.paid_bytes

        return min(pairs_of([most(peer) for peer in self.copies.peers]), self.tier.slot_count)

    @property
    def is_short(self) -> bool:
        """Whether there has been less room than for `tier.limit_slots` frames, for a while. Never
        with one copy, which goes when there is no room for it."""
        return self._short_since is not None and self._clock.now() - self._short_since >= SHORT_SECONDS

    def _look_at_room(self) -> None:
        promised = self.tier.limit_slots
        if self.promised_room() >= promised - (promised >> SHORT_SHIFT):
            self._short_since = None
        elif self._short_since is None:
            self._short_since = self._clock.now()

    def _missing(self) -> int:
        """How many second copies there are not, or may be lost, as far as nothing is under way.
        None are of frames that are lost, which nobody can copy."""
        copies = self.copies
        there = self.tier.used_slots - len(copies.in_flight) - len(copies.lost)
        return 2 * there - sum(copies.at) + copies.unproven()

    def status(self) -> dict[str, Any]:
        """Figures, and each peer's in words."""
        copies = self.copies
        return {
            "remote_name": self.name,
            "remote_capacity_frames": self.tier.limit_slots,
            "remote_frames": self.tier.used_slots if isinstance(self.tier, RemoteTier) else sum(copies.at),
            "remote_copies": sum(copies.at),
            "remote_bytes": sum(copies.at) * copies.paid_bytes,
            "foreign_bytes": sum(peer.foreign_bytes for peer in copies.peers),
            **copies.counters.as_dict(),
            "remote_peers": [
                {
                    "name": peer.name,
                    "is_up": peer.is_up,
                    "frames": copies.at[peer.lane],
                    "limit_bytes": peer.limit_bytes,
                    "foreign_bytes": peer.foreign_bytes,
                }
                for peer in copies.peers
            ],
        }
