"""The remote place of one server, put together: its tier, its mender, and what there is to say of
it."""

from collections.abc import Callable
from typing import Any

from zcache.clock import Clock
from zcache.image.image import Image
from zcache.remote.accounts import name_of
from zcache.remote.copies import Copies
from zcache.remote.engines import Engines
from zcache.remote.mender import Mender
from zcache.remote.remote_front import RemoteFront
from zcache.remote.remote_tier import RemoteTier
from zcache.remote.tables import Tables, no_image
from zcache.tiers import Tier

__all__ = ["Remote"]


class Remote:
    """Over `engines`, which were checked. With `frame_count` frames that they hold twice; or, if
    `front` is true, with one copy of so many of the backing's."""

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
        clock = Clock()
        self.name = name_of(secret)
        slot_count = backing.slot_count if is_front and backing else frame_count
        tables = Tables(slot_count, image.section if image else no_image)
        is_new = image is None or image.epoch == 1
        self.copies = Copies(tables, engines.make_peers(self.name, tables, is_new), frame_bytes, clock)
        self.tier: RemoteTier | RemoteFront
        if is_front and backing:
            self.tier = RemoteFront(backing, self.copies, frame_count)
        else:
            self.tier = RemoteTier(slot_count, self.copies, lambda: not (backing and backing.free_slots))
        self.mender = Mender(self.tier, engines, clock, report)
        self.mender.connect_all()

    def status(self) -> dict[str, Any]:
        """Figures, and each peer's in words."""
        copies = self.copies
        return {
            "remote_name": self.name,
            "remote_capacity_frames": self.tier.limit_slots,
            "remote_frames": self.tier.held_frames,
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
