"""Admission: which pages of ephemeral pools are worth their room. Persistent pools admit everything."""

from typing import Final

from zcache.entry import PAGE_BYTES
from zcache.statistics import Statistics

#: The original's `zv_max_mean_zsize`: with a mean beyond 5/8 of a page, an ephemeral page that is worse still is not
#: worth its room.
MAX_MEAN_ZPAGE_BYTES: Final = PAGE_BYTES * 5 // 8


def reject_poor(bodies: list[bytes], tags: list[int], statistics: Statistics) -> None:
    """Under the store's lock: pages that compress poorly are not stored, their entry will be EMPTY. `bodies` and `tags`
    are those of a put, and change in place; each reason is counted."""
    mean = statistics.ephemeral_bytes / statistics.ephemeral_pages if statistics.ephemeral_pages else 0
    for index, body in enumerate(bodies):
        if not body:
            continue
        if len(body) == PAGE_BYTES:
            statistics.reject_compress_poor += 1
        elif mean > MAX_MEAN_ZPAGE_BYTES and len(body) > mean:
            statistics.reject_mean_poor += 1
        else:
            continue
        statistics.ignored_puts += 1
        bodies[index], tags[index] = b"", 0
