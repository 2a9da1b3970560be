"""`scripts/bench shards`: two servers beside one, each with half of the device, as two swap areas
of equal priority would have it: the kernel spreads its pages over both.

The GIL keeps a server on one processor, so more servers are the way to more of them, where there
are more. What the client takes of the same processors is shown, because on two of them that is the
limit.
"""

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zcache.bench.nbd.fio import Load, Target, run_benchmark, run_fio
from zcache.bench.report import Figure, Report
from zcache.bench.served import running, speaks_nbd

#: The depth is that of all shards together.
LOADS: Final = (
    Load("4K write qd32", "randwrite", 4, 32),
    Load("4K read qd32", "randread", 4, 32),
    Load("128K write qd4", "randwrite", 128, 4),
    Load("32K read qd4", "randread", 32, 4),
)


def main(words: Sequence[str]) -> int:
    """Prints the table; exit status 0."""
    return run_benchmark("shards", __doc__, measure, words)


def measure(report: Report, size_mib: int, seconds: int, rounds: int, parameters: Sequence[str] = ()) -> None:
    """One server and two, turn about, into the report."""
    with tempfile.TemporaryDirectory(prefix="zcache-shards-") as work, contextlib.ExitStack() as undo:
        groups = [
            [_start(undo, Path(work) / f"{count}-{n}", size_mib // count, parameters) for n in range(count)]
            for count in (1, 2)
        ]
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        with report.console.status("filling") as status:
            for targets in groups:
                run_fio(targets, Load("fill", "write", 128, 4), size_mib // len(targets), 0)
            for turn in range(rounds):
                for load in LOADS:
                    for targets in groups:
                        count = len(targets)
                        status.update(f"round {turn + 1} of {rounds}: {load.name}, {count} servers")
                        share = Load(load.name, load.pattern, load.block_kib, load.depth // count)
                        figures = run_fio(targets, share, size_mib // count, seconds)
                        found.setdefault((load.name, count), []).append(figures)
    rows: list[dict[str, Figure]] = []
    for (name, count), several in found.items():
        medians = {figure: statistics.median(each[figure] for each in several) for figure in several[0]}
        alone = statistics.median(each["iops"] for each in found[name, 1])
        used = (medians["server_us"] + medians["client_us"]) * medians["iops"] / 1e6
        times = medians["iops"] / alone
        rows.append({"load": name, "servers": count, **medians, "processors in use": used, "iops to one's": times})
    report.table("shards", f"one server, and two with half of the device each ({size_mib} MiB)", rows)


def _start(undo: contextlib.ExitStack, stem: Path, size_mib: int, parameters: Sequence[str]) -> Target:
    socket = stem.with_suffix(".sock")
    command = [sys.executable, "-m", "nbd_plugin.serve", f"--unix={socket}", f"size={size_mib}M"]
    command += [f"budget={size_mib * 5 // 4}M", *parameters]
    pid = undo.enter_context(running(command, stem.with_suffix(".log"), lambda: speaks_nbd(socket)))
    return Target(stem.name, socket, pid)
