"""What is the matter with a store now, a line each: why `zcache status` says DEGRADED.

What `decode_errors` counts is never over: the memory of this machine changed by itself.
"""

from zcache.pageframes.queues import Queue
from zcache.store.store import Store
from zcache.tiers.damage import REMEMBERED_FRAMES, SEAL_BROKEN


def reasons(store: Store, lost_pages: int) -> list[str]:
    """Under the store's lock; none: all is well.

    `lost_pages` are those that are lost for good: not those of a put that still waits for room.
    """
    frames, damage = store.frames, store.damage
    found = []
    for place in store.below.places:
        writing = place.health.writing
        if writing.failures:
            what = "writeback" if place.tier.is_prompt else "sending frames to engines"
            found.append(
                f"{what} has been failing for {writing.trouble_seconds():.0f} s "
                f"({_count(writing.failures, 'try', 'tries')}, the last: {writing.last_error}); "
                f"{_count(frames.queue_length[Queue.PERSISTENT] + frames.in_flight, 'frame')} kept in RAM"
            )
    for what, count in damage.counts(frames, store.below.is_within_reach).items():
        least = "at least " if len(damage.frames) == REMEMBERED_FRAMES else ""
        last = "" if what == SEAL_BROKEN else f" (the last: {damage.last_error})"
        found.append(f"{least}{_count(count, 'frame')} below {what}: reads of their pages fail{last}")
    if lost_pages:
        found.append(
            f"{_count(lost_pages, 'page')} lost, because the last write found no room: "
            "reads fail until they are written or trimmed"
        )
    if unforeseen := store.reclaimer.unforeseen or (store.demoter.unforeseen if store.demoter else ""):
        found.append(f"background reclaim met something that it did not foresee (the last: {unforeseen})")
    if decode_errors := store.statistics.decode_errors:
        found.append(
            f"{_count(decode_errors, 'read')} met a page that had changed in RAM: "
            "this machine's memory cannot be trusted"
        )
    for place in store.below.places:
        if slowness := place.health.slowness():
            found.append(f"{'the disk is' if place.tier.is_prompt else 'engines are'} slow: {slowness}")
    return found


def _count(number: int, one: str, more: str | None = None) -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"
