"""fio's nbd engine as a client: one job for each server, all at once; and the command line of what
is measured with it."""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from rich.console import Console

from zcache.bench import against
from zcache.bench.report import Report
from zcache.errors import EnvironmentProblem
from zcache.testvm.arguments import whole_number

#: Of what fio writes, the share that is zeros: lz4 makes 1/3 of a page of the rest.
COMPRESSIBLE_PERCENT: Final = 67
TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """One fio job."""

    name: str
    pattern: str
    block_kib: int
    depth: int


@dataclass(frozen=True)
class Target:
    """A server."""

    name: str
    socket: Path
    pid: int


class Measure(Protocol):
    """What a benchmark with fio is: measures for so many rounds of seconds on devices of that size,
    into the report."""

    def __call__(
        self, report: Report, size_mib: int, seconds: int, rounds: int, parameters: Sequence[str] = ()
    ) -> None: ...


def run_benchmark(name: str, description: str | None, measure: Measure, words: Sequence[str]) -> int:
    """One from the command line; exit status 0."""
    epilog = against.MENTION if name in against.COMPARABLE else None
    parser = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=description, epilog=epilog)
    add = parser.add_argument
    add("--size", type=whole_number(16), default=256, metavar="MIB", help="of the devices (%(default)s)")
    add("--seconds", type=whole_number(), default=5, help="of each measurement (%(default)s)")
    add("--rounds", type=whole_number(), default=5, help="the median of so many (%(default)s)")
    add("--folder", type=Path, help="for the results (default: a new temporary one)")
    add("parameters", nargs="*", metavar="key=value", help="more for zcache, but size and budget")
    arguments = parser.parse_args(words)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-"))
    report = Report(folder, Console(width=170))
    measure(report, arguments.size, arguments.seconds, arguments.rounds, arguments.parameters)
    report.save()
    report.console.print(f"report.json and plots: {folder}")
    return 0


def run_fio(targets: Sequence[Target], load: Load, size_mib: int, seconds: int) -> dict[str, float]:
    """One run on all targets together: I/Os and MB a second, latency (the mean over jobs), and CPU
    for each I/O: the servers' own and the kernel's for them, and the clients'. With 0 seconds, once
    over the whole of each device."""
    words = ["fio", "--output-format=json"]
    for target in targets:
        words += [f"--name={target.name}", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={target.socket}"]
        words += [f"--rw={load.pattern}", f"--bs={load.block_kib}k", f"--iodepth={load.depth}", f"--size={size_mib}M"]
        words += [f"--buffer_compress_percentage={COMPRESSIBLE_PERCENT}", "--buffer_compress_chunk=4k"]
        words += ["--norandommap", "--lat_percentiles=1"]  # of the whole: clat is without the sending
        words += ["--refill_buffers"] if not seconds else ["--time_based", f"--runtime={seconds}"]
    before = _cpu_seconds(targets)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    own, kernel = (after - earlier for after, earlier in zip(_cpu_seconds(targets), before, strict=True))
    if done.returncode:
        names = ", ".join(target.name for target in targets)
        raise EnvironmentProblem(f"fio on {names}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    jobs: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    sides: list[dict[str, Any]] = [job["write" if "write" in load.pattern else "read"] for job in jobs]
    latencies = [side["lat_ns"].get("percentile", {}) for side in sides]
    client = sum((job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000 for job in jobs)
    count = sum(side["total_ios"] for side in sides)
    return {
        "iops": sum(side["iops"] for side in sides),
        "mb": sum(side["bw_bytes"] for side in sides) / 1e6,
        "p50_us": statistics.mean(latency.get("50.000000", 0) for latency in latencies) / 1000,
        "p99_us": statistics.mean(latency.get("99.000000", 0) for latency in latencies) / 1000,
        "server_us": (own + kernel) / count * 1e6,
        "kernel_us": kernel / count * 1e6,
        "client_us": client / count * 1e6,
    }


def _cpu_seconds(targets: Sequence[Target]) -> tuple[float, float]:
    """Of all of them, so far: their own, and the kernel's for them."""
    stats = [Path(f"/proc/{target.pid}/stat").read_text().rpartition(")")[2].split() for target in targets]
    own, kernel = (sum(int(fields[place]) for fields in stats) for place in (11, 12))
    return own / TICKS_A_SECOND, kernel / TICKS_A_SECOND
