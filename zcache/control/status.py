"""Status: every figure about a running server, as one flat dictionary. Names ending in `_pages`,
`_frames` and `_bytes` say their unit."""

import gc
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from zcache.control.peaks import amounts
from zcache.control.reasons import reasons
from zcache.hardening.protections import resident_and_locked_bytes
from zcache.hardening.threads import kept_threads
from zcache.linux import libc
from zcache.pageframes.queues import Queue
from zcache.pages.tmem import TmemObject
from zcache.store.store import Store

__all__ = ["gather_objects", "gather_status"]


def gather_status(
    store: Store,
    pages: TmemObject,
    protections: dict[str, bool],
    server_number: int = 1,
    troubles: Sequence[str] = (),
    around: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """A snapshot; `protections` is the outcome of the self-check, `troubles` what else is the
    matter, `around` what is to be said of things that the store does not know. Its own figures are
    taken under its lock and so agree with each other."""
    frames, reclaimer, below = store.frames, store.reclaimer, store.below
    backings = [place.tier for place in below.places if place.tier.is_prompt]
    coldest = backings[-1] if backings else None
    frame_bytes = frames.frame_bytes
    with store.lock:
        status = _of_store(store)
        lost_pages = status["lost_pages"] - store.waiting.page_count
        all_reasons = [*troubles, *reasons(store, lost_pages)]
    status["no_free_frame"] = sum(
        status[name] for name in ("eph_ate_tail", "eph_ate_tail_failed", "pers_ate_eph", "pers_ate_eph_failed")
    )
    status["written_back_frames"] = status["reclaim_background"] + status["reclaim_sync"]
    zpages = status["stored_pages"] - status["same_filled_pages"]
    resident_bytes, locked_bytes = resident_and_locked_bytes()
    used_frames = status["resident_frames"] + status["cold_frames"]
    return {
        "state": "degraded" if all_reasons else "ok",
        "reasons": all_reasons,
        "size_bytes": pages.page_count * 4096,
        "budget_bytes": frames.budget_frames * frame_bytes,
        "frame_bytes": frame_bytes,
        "codec": store.putter.codec.name,
        "page_loop": store.loop.name,
        "allocator": store.allocator.name,
        "recompress": store.recompressor.codec.name if store.recompressor else "off",
        "backing": str(getattr(coldest, "path", "")) if coldest else None,
        "backing_direct_io": getattr(coldest, "direct", None),
        "encrypt": store.seal.encrypts,
        "admit": store.admission.admit,
        "readahead_window_frames": store.readahead_window,
        "recompress_share": reclaimer.spare_time.share,
        "low_watermark_frames": reclaimer.low_watermark,
        "high_watermark_frames": reclaimer.high_watermark,
        **status,
        "codec_ratio": round(zpages * 4096 / status["compressed_bytes"], 3) if status["compressed_bytes"] else None,
        "ratio": round(status["stored_pages"] * 4096 / (used_frames * frame_bytes), 3) if used_frames else None,
        "rss_bytes": resident_bytes,
        "locked_bytes": locked_bytes,
        "pid": os.getpid(),
        "server_number": server_number,
        "kept_threads": kept_threads(),
        "hardening": protections,
        **around,
    }


def _of_store(store: Store) -> dict[str, Any]:
    """Its own figures. Call it with the store's lock held."""
    frames, below = store.frames, store.below
    return {
        **store.statistics.as_dict(),
        **amounts(store),
        "tmem_objects": len(store.tmem.objects()),
        "resident_frames": frames.resident,
        "budget_frames": frames.budget_frames,
        "free_frames": frames.free_slot_count,
        "clean_frames": frames.queue_length[Queue.CLEAN],
        "dirty_frames": frames.queue_length[Queue.PERSISTENT],
        "in_flight_frames": frames.in_flight,
        "cold_frames": frames.cold,
        "dropped_clean": frames.dropped_clean,
        "backing_frames": sum(place.tier.used_slots for place in below.places if place.tier.is_prompt),
        "backing_capacity_frames": sum(place.tier.slot_count for place in below.places if place.tier.is_prompt),
    }


def gather_objects() -> dict[str, int]:
    """What the process has allocated: for a soak, which looks for leaks. Not in the status: listing
    all objects costs some milliseconds with the GIL held.

    `sys.getallocatedblocks` would say nothing: with PYTHONMALLOC=malloc, small objects are malloc's
    like all else.
    """
    return {"gc_objects": len(gc.get_objects()), "malloc_bytes": libc.malloced_bytes()}
