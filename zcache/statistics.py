"""Counters: one surface for everything that the store counts.

The first group is amounts held now; all others only grow. They are plain integers changed under the store's lock, so
that a snapshot taken under the lock balances.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

from zcache.codec import WORD
from zcache.entry import CODEC_MASK, CODEC_SHIFT, LENGTH_MASK, LENGTH_SHIFT, LOST, PAGE_BYTES, SAME_FILLED

HELD_NOW: Final = (
    "stored_pages",
    "same_filled_pages",
    "raw_pages",
    "compressed_bytes",
    "lost_pages",
    "ephemeral_pages",
    "ephemeral_bytes",
)


@dataclass(slots=True)
class Statistics:
    """What the store counts; figures that other objects hold are added by `zcache.status.gather_status`."""

    # held now
    stored_pages: int = 0  # all pages with data: zpages, raw and same-filled
    same_filled_pages: int = 0
    raw_pages: int = 0
    compressed_bytes: int = 0  # of all zpages, raw ones included
    lost_pages: int = 0
    ephemeral_pages: int = 0  # of all pages, those with a zpage in an ephemeral pool
    ephemeral_bytes: int = 0

    # requests, in pages
    puts: int = 0
    gets: int = 0
    get_misses: int = 0
    ephemeral_puts: int = 0  # of these, of ephemeral pools
    ephemeral_gets: int = 0
    ephemeral_misses: int = 0
    flush_requests: int = 0  # not in pages
    flushes: int = 0  # those that had been something
    object_flushes: int = 0  # objects
    failed_puts: int = 0
    ignored_puts: int = 0  # ephemeral puts that were not admitted, or found no room
    partial_writes: int = 0  # requests' unaligned ends: read, modified, written

    # why a page was not stored compressed, or not stored
    reject_compress_poor: int = 0  # the zpage is longer than the allocator takes: stored raw (persistent)
    reject_mean_poor: int = 0  # ephemeral: the mean is poor, and this page makes it worse
    reject_not_reused: int = 0  # ephemeral: nothing says that the page is used again
    reject_no_frame: int = 0  # no frame could be had in RAM or below

    # reclaim, in frames
    reclaim_background: int = 0
    reclaim_sync: int = 0
    writeback_batches: int = 0
    fetched_frames: int = 0  # read back from the tier below, because somebody wanted a page of them
    readahead_frames: int = 0  # read along with them
    readahead_hits: int = 0  # and used afterwards
    readopted_frames: int = 0  # of both, taken back into RAM
    packed_frames: int = 0  # of the log: what was alive in them is in fewer frames now
    packed_pages: int = 0
    recompressed_pages: int = 0  # those that moved with them, whether or not they became smaller, included
    recompressed_saved_bytes: int = 0

    # ouroboros: what was eaten, and by whom; times that there was nothing to eat
    evicted_ephemeral_frames: int = 0
    evicted_ephemeral_pages: int = 0
    eph_ate_tail: int = 0  # frames that an ephemeral put ate
    eph_ate_tail_failed: int = 0  # so the put was ignored
    pers_ate_eph: int = 0  # frames that a persistent put ate, or a fetch
    pers_ate_eph_failed: int = 0  # so something persistent has to be packed, or written back

    budget_grown_frames: int = 0
    budget_shrunk_frames: int = 0

    # damage
    checksum_errors: int = 0
    decode_errors: int = 0
    unforeseen_errors: int = 0  # of background reclaim
    writeback_errors: int = 0  # flights that failed
    writeback_kept_frames: int = 0  # frames of failed flights, which stayed in RAM
    fetch_errors: int = 0
    fetch_retries: int = 0  # frames read again within their request, after an error or a wrong seal
    slow_writes: int = 0  # flights that took longer than a second
    slow_reads: int = 0

    def account(self, entries: Iterable[int], ephemeral: int, sign: int) -> None:
        """Add (`sign` 1) or take away (-1) pages by their page-table entries; `ephemeral` is their pool's kind."""
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
        self.stored_pages += sign * held
        self.same_filled_pages += sign * same_filled
        self.raw_pages += sign * raw
        self.compressed_bytes += sign * size_bytes
        self.lost_pages += sign * lost
        if sign > 0:
            self.reject_compress_poor += raw
        if ephemeral:
            self.ephemeral_pages += sign * held
            self.ephemeral_bytes += sign * size_bytes

    def as_dict(self) -> dict[str, int]:
        """Every counter by name, and what follows from them."""
        return asdict(self) | {"read_bytes": self.gets * PAGE_BYTES, "write_bytes": self.puts * PAGE_BYTES}
