"""The job of `scripts/run --pager`: `python -m zcache.bench.pager.demo_job KIND BYTES FOLDER`. It
prints [seconds since the epoch, bytes done] as it goes on, and at the end a digest of its result
and how long each part took. It knows nothing of regions.
"""

import hashlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

KINDS: Final = ("region", "memory", "memmap")
BLOCKS: Final = 24
GROUPS: Final = 1000


def main(kind: str, size_bytes: str, folder: str) -> None:
    """Prints lines of JSON."""
    import numpy

    count = int(size_bytes) // 8
    values: Any
    if kind == "memmap":
        values = numpy.memmap(Path(folder) / "array", "i8", "w+", shape=(count,))
    else:
        values = numpy.empty(count, "i8")
    times, done = [time.time()], 0

    def step(size: int) -> None:
        nonlocal done
        done += size
        print(json.dumps([time.time(), done]), flush=True)

    rng = numpy.random.default_rng(1)
    edges = [count * block // BLOCKS for block in range(BLOCKS + 1)]
    for begin, end in itertools.pairwise(edges):
        values[begin:end] = rng.integers(0, 1 << 24, end - begin)
        step(8 * (end - begin))
    times.append(time.time())
    values.sort()
    step(8 * count)
    times.append(time.time())
    groups = numpy.zeros(GROUPS, "i8")
    for begin, end in itertools.pairwise(edges):
        block = values[begin:end]
        groups += numpy.bincount(block % GROUPS, weights=block, minlength=GROUPS).astype("i8")
        step(8 * (end - begin))
    times.append(time.time())
    fill, sort, group = (after - before for before, after in itertools.pairwise(times))
    digest = hashlib.sha256(groups.tobytes() + values[:: 1 << 10].tobytes()).hexdigest()
    words = {"digest": digest, "seconds": times[-1] - times[0], "fill": fill, "sort": sort, "group": group}
    print(json.dumps(words))


if __name__ == "__main__":
    main(*sys.argv[1:])
