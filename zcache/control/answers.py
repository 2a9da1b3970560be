"""What a server answers, as whoever asks reads it: the shapes of the JSON, as far as it is printed.

Only the asker loads this. A server's answer has more keys than these (all counters, for `--json`);
tests/unit/client/test_tables.py holds the two together.
"""

from typing import Final, NotRequired, TypedDict


class Decision(TypedDict):
    """A change of the budget, and why."""

    seconds: float  # since the epoch
    before_bytes: int
    after_bytes: int
    why: str


class CleanExport(TypedDict):
    """A disk and its cache; pages that were asked for, and reads of the file, since the start."""

    name: str
    size_bytes: int
    read_only: bool
    gets: int
    misses: int
    file_reads: int


class RemotePeer(TypedDict):
    """An engine, or a lane of a Cluster."""

    name: str
    is_up: bool
    frames: int  # copies
    limit_bytes: int | None  # None: no limit is known
    foreign_bytes: int


class SwapArea(TypedDict):
    """A line of /proc/swaps: any area's, not only ours."""

    path: str
    type: str
    size_bytes: int
    used_bytes: int
    priority: int


class RegionStatus(TypedDict):
    """A region of a pager's; faults since the pager's start."""

    client_pid: int  # 0: in another namespace
    region_bytes: int
    limit_bytes: int
    resident_pages: int
    stored_region_pages: int
    faults: int
    fault_p50_us: float
    fault_p99_us: float
    lost_region_pages: int


class Troubles(TypedDict):
    """Counters that are 0 as long as nothing was ever wrong."""

    failed_puts: int
    checksum_errors: int
    decode_errors: int
    writeback_errors: int
    fetch_errors: int
    fetch_retries: int
    slow_writes: int
    slow_reads: int


TROUBLES: Final = tuple(Troubles.__annotations__)


class Status(Troubles):
    """The answer to `status`, and what the asker adds to it."""

    state: str  # "ok", or "degraded", for which there are reasons
    reasons: list[str]
    size_bytes: int
    codec: str
    allocator: str
    stored_pages: int
    compressed_bytes: int
    ratio: float | None  # None while nothing is stored
    same_filled_pages: int
    frame_bytes: int
    resident_frames: int
    clean_frames: int
    ephemeral_frames: int
    backing_frames: int
    backing_capacity_frames: int
    written_back_frames: int
    budget_bytes: int
    backing: str | None
    encrypt: bool
    rss_bytes: int
    locked_bytes: int
    pid: int
    server_number: int  # of this swap, from 1
    recompress: str  # a codec's name, or "off"
    recompressed_pages: int
    recompressed_saved_bytes: int
    page_loop: str  # "compiled", or "python"
    hardening: dict[str, bool]  # each protection, and whether it holds
    # Of a server that serves, not of a bare store:
    budget_min_bytes: NotRequired[int]
    budget_max_bytes: NotRequired[int]
    budget_decisions: NotRequired[list[Decision]]  # the latest first
    clean_exports: NotRequired[list[CleanExport]]
    # With engines:
    remote_name: NotRequired[str]
    remote_frames: NotRequired[int]
    remote_capacity_frames: NotRequired[int]
    remote_bytes: NotRequired[int]
    remote_peers: NotRequired[list[RemotePeer]]
    # Of a pager:
    regions: NotRequired[list[RegionStatus]]
    # The asker's:
    backing_goes_with_swap: NotRequired[bool]
    swap_areas: NotRequired[list[SwapArea]]
    zswap: NotRequired[bool]


class SettingsNow(TypedDict):
    """The answer to `set`: what all settings are now."""

    budget_min_bytes: int
    budget_max_bytes: int
    low_watermark_bytes: int
    high_watermark_bytes: int
    recompress_share: float
    admit: str


class Audit(TypedDict):
    """The answer to `check`."""

    balanced: bool
    imbalance: NotRequired[str]
    stored_pages: NotRequired[int]
    lost_pages: NotRequired[int]
    reasons: NotRequired[list[str]]
