"""What is said when a job has ended."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zcache.run.in_job import FIGURES_SUFFIX
from zcache.run.watch import Watch
from zcache.sizes import human

NAMES: Final = {int(number): number.name for number in signal.Signals}


def report(watch: Watch, limit_bytes: int, folder: Path, status: int) -> Iterator[str]:
    """Lines: what the limit covered, and what not. `folder` is where Pythons of the job that ended
    in good order have left what their arrays took; `status` is the job's."""
    if status == -signal.SIGBUS and watch.count("failed_puts"):
        yield "the job was ended by SIGBUS, for the store was full: give a larger budget=, or backing=PATH"
    elif status < 0:
        yield f"the job was ended by {NAMES.get(-status, f'signal {-status}')}"
    taken = max([watch.array_bytes, *(int(figures.read_text()) for figures in folder.glob(f"*{FIGURES_SUFFIX}"))])
    if not taken and status < 0:  # nobody has looked in time, or there was nothing to be seen
        return
    if not taken:
        yield "no array was in a region: no Python imported NumPy and made a large array, or it ignores PYTHONPATH"
        return
    yield (
        f"arrays of up to {human(taken)}, of them at most {human(limit_bytes)} uncompressed; "
        f"the store took up to {human(watch.ram_bytes)} of RAM and {human(watch.below_bytes)} on disk"
    )
    moved = f"pages that went out: {watch.count('puts')}, that came in: {watch.count('gets')}"
    yield f"{moved}; faults: {watch.count('region_faults')}"
    yield (
        f"not covered by the limit: up to {human(watch.outside_bytes)}, of the interpreter, small arrays, "
        "and what allocates by itself (pyarrow, torch, strings)"
    )
