"""fio's nbd engine as a client: one job for each server, all at once."""

import json
import os
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zcache.errors import EnvironmentProblem

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


def run_fio(targets: Sequence[Target], load: Load, size_mib: int, seconds: int) -> dict[str, float]:
    """One run on all targets together: I/Os and MB a second, latency (the mean over jobs), the servers' and the
    clients' CPU for each I/O. With 0 seconds, once over the whole of each device."""
    words = ["fio", "--output-format=json"]
    for target in targets:
        words += [f"--name={target.name}", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={target.socket}"]
        words += [f"--rw={load.pattern}", f"--bs={load.block_kib}k", f"--iodepth={load.depth}", f"--size={size_mib}M"]
        words += [f"--buffer_compress_percentage={COMPRESSIBLE_PERCENT}", "--buffer_compress_chunk=4k"]
        words += ["--norandommap"]
        words += ["--refill_buffers"] if not seconds else ["--time_based", f"--runtime={seconds}"]
    before = sum(_cpu_seconds(target.pid) for target in targets)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    used = sum(_cpu_seconds(target.pid) for target in targets) - before
    if done.returncode:
        names = ", ".join(target.name for target in targets)
        raise EnvironmentProblem(f"fio on {names}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    jobs: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    sides: list[dict[str, Any]] = [job["write" if "write" in load.pattern else "read"] for job in jobs]
    latencies = [side["clat_ns"].get("percentile", {}) for side in sides]
    client = sum((job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000 for job in jobs)
    count = sum(side["total_ios"] for side in sides)
    return {
        "iops": sum(side["iops"] for side in sides),
        "mb": sum(side["bw_bytes"] for side in sides) / 1e6,
        "p50_us": statistics.mean(latency.get("50.000000", 0) for latency in latencies) / 1000,
        "p99_us": statistics.mean(latency.get("99.000000", 0) for latency in latencies) / 1000,
        "server_us": used / count * 1e6,
        "client_us": client / count * 1e6,
    }


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
