"""Counters: one surface for everything that the store counts.

The first group is amounts held now; all others only grow. They are plain integers changed under the
store's lock, so that a snapshot taken under the lock balances.
"""

from collections.abc import Iterable
from typing import Final

from zcache.pages.codec import WORD
from zcache.pages.entry import CODEC_MASK, CODEC_SHIFT, LENGTH_MASK, LENGTH_SHIFT, LOST, PAGE_BYTES, SAME_FILLED
from zcache.pages.tmem import Kind

HELD_NOW: Final = (
    "stored_pages",
    "same_filled_pages",
    "raw_pages",
    "compressed_bytes",
    "lost_pages",
    "ephemeral_pages",
    "ephemeral_bytes",
)


class Statistics:
    """What the store counts; figures that other objects hold are added by
    `zcache.control.status.gather_status`."""

    def __init__(self) -> None:
        # held now
        self.stored_pages = 0  # all pages with data: zpages, raw and same-filled
        self.same_filled_pages = 0
        self.raw_pages = 0
        self.compressed_bytes = 0  # of all zpages, raw ones included
        self.lost_pages = 0
        self.ephemeral_pages = 0  # of all pages, those with a zpage in an ephemeral pool
        self.ephemeral_bytes = 0

        # requests, in pages
        self.puts = 0
        self.gets = 0
        self.get_misses = 0
        self.ephemeral_puts = 0  # of these, of ephemeral pools
        self.ephemeral_gets = 0
        self.ephemeral_misses = 0
        self.flush_requests = 0  # not in pages
        self.flushes = 0  # those that had been something
        self.object_flushes = 0  # objects
        self.failed_puts = 0
        self.ignored_puts = 0  # ephemeral puts that were not admitted, or found no room
        self.partial_writes = 0  # requests' unaligned ends: read, modified, written

        # why a page was not stored compressed, or not stored
        self.reject_compress_poor = 0  # the zpage is longer than the allocator takes: stored raw (persistent)
        self.reject_mean_poor = 0  # ephemeral: the mean is poor, and this page makes it worse
        self.reject_not_reused = 0  # ephemeral: nothing says that the page is used again
        self.reject_no_frame = 0  # no frame could be had in RAM or below

        # reclaim, in frames
        self.reclaim_background = 0
        self.reclaim_sync = 0
        self.writeback_batches = 0
        self.fetched_frames = 0  # read back from the tier below, because somebody wanted a page of them
        self.readahead_frames = 0  # read along with them
        self.readahead_hits = 0  # and used afterwards
        self.readopted_frames = 0  # of both, taken back into RAM
        self.demoted_frames = 0  # that went on from a warm tier to the next one
        self.pulled_back_frames = 0  # that came back from there, because RAM had room to spare
        self.packed_frames = 0  # of the log: what was alive in them is in fewer frames now
        self.packed_pages = 0
        self.recompressed_pages = 0  # those that moved with them, whether or not they became smaller, included
        self.recompressed_saved_bytes = 0

        # ouroboros: what was eaten, and by whom; times that there was nothing to eat
        self.evicted_ephemeral_frames = 0
        self.evicted_ephemeral_pages = 0
        self.eph_ate_tail = 0  # frames that an ephemeral put ate
        self.eph_ate_tail_failed = 0  # so the put was ignored
        self.pers_ate_eph = 0  # frames that a persistent put ate, or a fetch
        self.pers_ate_eph_failed = 0  # so something persistent has to be packed, or written back

        self.budget_grown_frames = 0
        self.budget_shrunk_frames = 0

        # damage
        self.checksum_errors = 0
        self.decode_errors = 0
        self.unforeseen_errors = 0  # of background reclaim
        self.writeback_errors = 0  # flights that failed
        self.writeback_kept_frames = 0  # frames of failed flights, which stayed in RAM
        self.fetch_errors = 0
        self.fetch_retries = 0  # frames read again within their request, after an error or a wrong seal
        self.slow_writes = 0  # flights that took longer than a second
        self.slow_reads = 0

    def account(self, entries: Iterable[int], kind: Kind, sign: int) -> None:
        """Add (`sign` 1) or take away (-1) pages by their page-table entries; `kind` is
        their pool's."""
        same_filled = raw = lost = size_bytes = held = 0
        for entry in entries:
            if entry < SAME_FILLED:
                if entry:
                    length = (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1
                    size_bytes += length
                    held += 1
                    if length == PAGE_BYTES:
                        raw += 1
                    elif entry >> CODEC_SHIFT & CODEC_MASK == WORD:
                        same_filled += 1
            elif entry < LOST:
                same_filled += 1
                held += 1
            else:
                lost += 1
        changed = {
            "stored_pages": self.stored_pages + sign * held,
            "same_filled_pages": self.same_filled_pages + sign * same_filled,
            "raw_pages": self.raw_pages + sign * raw,
            "compressed_bytes": self.compressed_bytes + sign * size_bytes,
            "lost_pages": self.lost_pages + sign * lost,
        }
        if sign > 0:
            changed["reject_compress_poor"] = self.reject_compress_poor + raw
        if kind:
            changed["ephemeral_pages"] = self.ephemeral_pages + sign * held
            changed["ephemeral_bytes"] = self.ephemeral_bytes + sign * size_bytes
        vars(self).update(changed)  # at once: for want of memory it is all or nothing

    def as_dict(self) -> dict[str, int]:
        """Every counter by name, and what follows from them."""
        return vars(self) | {"read_bytes": self.gets * PAGE_BYTES, "write_bytes": self.puts * PAGE_BYTES}
