"""A job over arrays: `python -m zcache.bench.pager.arrays JOB ROWS` prints seconds, and a digest of
the result, as JSON. It knows nothing of regions.

JOB is `sum` (NumPy: three passes over an array), `sort` (NumPy: a sorted copy) or `group-by`
(pandas: sums by key).
"""

import hashlib
import json
import sys
import time
from typing import Any, Final

JOBS: Final = ("sum", "sort", "group-by")


def main(job: str, rows: str) -> None:
    """Prints one line."""
    import numpy

    count = int(rows)
    begin = time.perf_counter()
    rng = numpy.random.default_rng(1)
    found: Any
    if job == "sum":
        values = rng.integers(0, 1 << 20, count)
        found = numpy.array([values.sum(), (values + 1).sum(), values.sum()])
    elif job == "sort":
        found = numpy.sort(rng.integers(0, 1 << 20, count))
    else:
        import pandas  # type: ignore[import-untyped]

        frame = pandas.DataFrame({"key": rng.integers(0, 1000, count), "value": rng.integers(0, 1 << 20, count)})
        found = frame.groupby("key")["value"].sum().to_numpy()
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "digest": hashlib.sha256(found.tobytes()).hexdigest()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
