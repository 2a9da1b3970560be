"""Memory that is filled, and touched in each of the patterns, one after the other:
`python -m zcache.bench.pager.job KIND SIZE_MIB RESIDENT_MIB BUDGET_MIB SECONDS FOLDER SEED`.
It prints what that took, as JSON. KIND is `region`, `memmap` (a file in FOLDER) or `memory`.
"""

import json
import mmap
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

from zcache.bench.pager.touches import PATTERNS, figures, fill, order, touch
from zcache.linux import memory
from zcache.pager.region import Region
from zcache.pages.entry import PAGE_BYTES

#: More than anything touches in the time.
MOST_TOUCHES: Final = 400_000


def main(kind: str, size_mib: str, resident_mib: str, budget_mib: str, seconds: str, folder: str, seed: str) -> None:
    """Prints one line."""
    size_bytes, rng = int(size_mib) << 20, random.Random(int(seed))
    place = Path(folder)
    region = None
    if kind == "region":
        backing: dict[str, Any] = {"backing": place / "backing", "overcommit": "yes"}
        region = Region(size_bytes, f"{resident_mib}M", budget=f"{budget_mib}M", **backing)
        view: Any = region.buffer
    elif kind == "memmap":
        with (place / "file").open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            view = memoryview(mmap.mmap(file.fileno(), size_bytes))
    else:
        view = memoryview(mmap.mmap(-1, size_bytes))
    begin = time.perf_counter()
    fill(view, rng)
    found: dict[str, Any] = {"fill_seconds": time.perf_counter() - begin}
    for pattern in PATTERNS:
        pages = order(pattern, size_bytes // PAGE_BYTES, MOST_TOUCHES, rng)
        found[pattern] = figures(touch(memory.address(view), pages, float(seconds), rng, are_written=True))
    if region:
        found["status"] = region.status()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
