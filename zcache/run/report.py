"""What is said when a job has ended."""

import signal
from collections.abc import Iterator
from pathlib import Path

from zcache.run.in_job import FIGURES_SUFFIX
from zcache.run.watch import Watch
from zcache.sizes import human


def report(watch: Watch, limit_bytes: int, folder: Path, status: int) -> Iterator[str]:
    """Lines: what the limit covered, and what not. `folder` is where Pythons of the job that ended
    in good order have left what their arrays took; `status` is the job's."""
    store = watch.store
    if status == -signal.SIGBUS and store.get("failed_puts"):
        yield "the job was ended by SIGBUS, for the store was full: give a larger budget=, or backing=PATH"
    elif status < 0:
        yield f"the job was ended by {signal.Signals(-status).name}"
    faults = store.get("region_faults", 0)
    if not faults:
        yield "no array was in a region: no Python imported NumPy and made a large array, or it ignores PYTHONPATH"
        return
    arrays = sum(int(figures.read_text()) for figures in folder.glob(f"*{FIGURES_SUFFIX}"))
    yield (
        f"arrays of up to {human(max(arrays, watch.array_bytes))}, of them at most {human(limit_bytes)} uncompressed; "
        f"the store took up to {human(watch.ram_bytes)} of RAM and {human(watch.below_bytes)} on disk"
    )
    yield f"pages that went out: {store.get('puts', 0)}, that came in: {store.get('gets', 0)}; faults: {faults}"
    yield (
        f"not covered by the limit: up to {human(watch.outside_bytes)}, of the interpreter, small arrays, "
        "and what allocates by itself (pyarrow, torch, strings)"
    )
