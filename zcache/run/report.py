"""What is said when a job has ended."""

from collections.abc import Iterator
from pathlib import Path

from zcache.run.in_job import FIGURES_SUFFIX
from zcache.run.watch import Watch
from zcache.sizes import human


def report(watch: Watch, limit_bytes: int, folder: Path) -> Iterator[str]:
    """Lines: what the limit was for, and what not. `folder` is where Pythons of the job have left
    what their arrays took."""
    arrays = [int(figures.read_text()) for figures in folder.glob(f"*{FIGURES_SUFFIX}")]
    store = watch.store
    if arrays:
        yield (
            f"arrays of up to {human(sum(arrays))}, of them at most {human(limit_bytes)} as they are; "
            f"the store took at most {human(watch.ram_bytes)} of RAM, {human(watch.below_bytes)} below"
        )
        left, came, faults = (store.get(name, 0) for name in ("puts", "gets", "region_faults"))
        yield f"{left} pages left, {came} came, by {faults} faults"
    else:
        yield (
            "no array was in a region: no Python of the job has imported NumPy and ended in good order, "
            "or it does not read PYTHONPATH (python -I, -E, -S)"
        )
    yield (
        f"outside the limit: up to {human(watch.outside_bytes)}, for the interpreter, small arrays, "
        "and what allocates by itself (pyarrow, torch, a dataframe's strings)"
    )
