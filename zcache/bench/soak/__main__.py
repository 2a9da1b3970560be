"""`scripts/bench soak`: does the server grow? Puts, overwrites, trims and gets over NBD for as long
as asked.

Two clients write, trim, zero and read half of the device each, whole pages and parts of them, and
verify all that they read; each of their connections lives for a few hundred requests. The budget is
an eighth of the device, so that everything moves to the backing file and back. Measurements are
taken in between, when no client is connected and the server is at rest. Each is laid a line through
(flatness.py) and has a limit of growth an hour.

Kernel memory is the whole machine's: judged in the test VM, where nothing else runs; elsewhere it
is shown, and means little. Exit status 0 if all that is judged is flat; 1 if something grows; 3 if
it was too short to tell.
"""

import argparse
import csv
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import nbd
from rich.console import Console
from rich.table import Table

from zcache.bench.complaints import fail_writes
from zcache.bench.served import Served, serve
from zcache.bench.soak.flatness import WARM_UP, Trend, trend
from zcache.bench.soak.traffic import Traffic, WrongPage
from zcache.errors import EnvironmentProblem
from zcache.testvm.arguments import whole_number
from zcache.testvm.figures import read_meminfo_kib
from zcache.testvm.machine import JOB_MOUNT

#: What is measured, and how much more of it there may be each hour. One object of the smallest size
#: (32 bytes) leaked by every hundredth request comes to 1700 KiB an hour at 1500 requests a second.
LIMITS: Final = {
    "rss_kib": 1024.0,
    "locked_kib": 1024.0,
    "malloc_kib": 512.0,
    "gc_objects": 500.0,
    "descriptors": 2.0,
    "threads": 2.0,
    "slab_kib": 4096.0,
    "kernel_stack_kib": 256.0,
}
OF_THE_MACHINE: Final = ("slab_kib", "kernel_stack_kib")
CLIENTS: Final = 2
REQUESTS_PER_CONNECTION: Final = 400
#: Between two measurements, if that gives LEAST_SAMPLES of them: three in each tenth of what comes
#: after the warm-up.
PERIOD_SECONDS: Final = 10.0
LEAST_SAMPLES: Final = 40
#: For the threads of a connection, which end after it has.
REST_SECONDS: Final = 5.0
#: The first that anything shows is the soak's.
OUTCOMES: Final = (("grows", "FAILED: it grows", 1), ("undecided", "too short to tell", 3), ("flat", "OK: flat", 0))
SPARK: Final = "▁▂▃▄▅▆▇█"

Sample = dict[str, float]


def main(words: Sequence[str]) -> int:
    """Prints the verdicts."""
    arguments = _parse(words)
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=130)
    console.print(f"soak: {arguments.seconds} s, seed {seed}, results in {folder}")
    size_mib, budget_mib = arguments.size, arguments.size // 8
    parameters = [f"size={size_mib}M", f"budget={budget_mib}M", f"backing={folder / 'backing'}"]
    try:
        with serve(folder / "server.log", *parameters, *arguments.parameters) as server:
            samples = soak(server, size_mib * 256, arguments.seconds, seed, folder / "soak.csv", console)
            books = server.ask("check")
    except (WrongPage, nbd.Error, EnvironmentProblem) as error:
        console.print(f"FAILED: {error}")
        return 1
    (folder / "backing").unlink()
    trends = {name: trend(_series(samples, "seconds"), _series(samples, name), LIMITS[name]) for name in LIMITS}
    print_table(samples, trends, console)
    plot(samples, trends, folder / "soak.png")
    if arguments.failures:
        console.print(leak_of_failures(arguments.failures, folder))
    if not books["balanced"]:
        console.print(f"FAILED: the books do not balance: {books['imbalance']}")
        return 1
    verdicts = {line.verdict for name, line in trends.items() if is_judged(name)}
    for verdict, said, status in OUTCOMES:
        if verdict in verdicts:
            console.print(said)
            return status
    raise AssertionError(verdicts)


def soak(server: Served, page_count: int, seconds: float, seed: int, table: Path, console: Console) -> list[Sample]:
    """Traffic, and a measurement now and then; each is appended to `table` as it comes."""
    idle_threads = _thread_count(server)
    half = page_count // CLIENTS
    clients = [Traffic(server.connect, number * half, half, random.Random(seed + number)) for number in range(CLIENTS)]
    _together([client.fill for client in clients])
    samples: list[Sample] = []
    begin = time.monotonic()
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["seconds", "requests", *LIMITS])
        writer.writeheader()
        while len(samples) < LEAST_SAMPLES or samples[-1]["seconds"] < seconds:
            pause = time.monotonic() + min(PERIOD_SECONDS, seconds / LEAST_SAMPLES)
            _together([partial(_run_until, client, pause) for client in clients])
            _rest(server, idle_threads)
            samples.append(_measure(server, begin, sum(client.requests.total() for client in clients)))
            writer.writerow(samples[-1])
            file.flush()
            if len(samples) % 10 == 0:
                now = samples[-1]
                shown = ", ".join(f"{name} {now[name]:.0f}" for name in ("requests", "rss_kib", "malloc_kib"))
                console.print(f"{now['seconds']:6.0f} s: {shown}")
    return samples


def leak_of_failures(count: int, folder: Path) -> str:
    """What a server keeps of each failed request: nbdkit 1.32 never frees the exception that it is
    told of it by."""
    with serve(folder / "failures.log", "size=16M", "budget=1M", "overcommit=yes") as server:
        figures = []
        for round_count in (count // 4, count):
            if fail_writes(server.socket, round_count) < round_count:
                return "the server stood still"
            figures.append(_measure(server, 0, 0))
    kept = {name: (figures[1][name] - figures[0][name]) * 1024 / count for name in ("malloc_kib", "rss_kib")}
    return f"each of {count} failed requests kept {kept['malloc_kib']:.0f} bytes ({kept['rss_kib']:.0f} of RSS)"


def _run_until(client: Traffic, deadline: float) -> None:
    while time.monotonic() < deadline:
        client.run(REQUESTS_PER_CONNECTION)


def _together(works: Sequence[Callable[[], None]]) -> None:
    """Each in a thread; raises what the first of them raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()


def _rest(server: Served, idle_threads: int) -> None:
    deadline = time.monotonic() + REST_SECONDS
    while time.monotonic() < deadline and _thread_count(server) > idle_threads:
        time.sleep(0.02)


def _thread_count(server: Served) -> int:
    return len(os.listdir(f"/proc/{server.pid}/task"))  # noqa: PTH208 (its length is wanted)


def _measure(server: Served, begin: float, requests: int) -> Sample:
    status, objects, machine = server.ask("status"), server.ask("objects"), read_meminfo_kib()
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "requests": requests,
        "rss_kib": status["rss_bytes"] >> 10,
        "locked_kib": status["locked_bytes"] >> 10,
        "malloc_kib": round(objects["malloc_bytes"] / 1024, 2),
        "gc_objects": objects["gc_objects"],
        "descriptors": len(os.listdir(f"/proc/{server.pid}/fd")),  # noqa: PTH208 (its length is wanted)
        "threads": _thread_count(server),
        "slab_kib": machine["Slab"],
        "kernel_stack_kib": machine["KernelStack"],
    }


def _series(samples: list[Sample], name: str) -> list[float]:
    return [sample[name] for sample in samples]


def is_judged(name: str) -> bool:
    """Kernel memory only where nothing but the server uses it."""
    return name not in OF_THE_MACHINE or JOB_MOUNT.exists()


def print_table(samples: list[Sample], trends: dict[str, Trend], console: Console) -> None:
    """One row a measurement; the little curve is its whole course."""
    table = Table(box=None)
    for heading in ("measured", "first", "last", "an hour", "noise", "limit", "verdict", "course"):
        table.add_column(heading, justify="left" if heading == "course" else "right")
    for name, line in trends.items():
        values = _series(samples, name)
        verdict = line.verdict if is_judged(name) else "(the machine's)"
        figures = [f"{figure:.1f}" for figure in (values[0], values[-1], line.slope, line.noise, line.limit)]
        table.add_row(name, *figures, verdict, _spark(values))
    console.print(table)


def _spark(values: list[float]) -> str:
    low, high = min(values), max(values)
    step = max(len(values) // 40, 1)
    return "".join(SPARK[int((value - low) / (high - low or 1) * 7)] for value in values[::step])


def plot(samples: list[Sample], trends: dict[str, Trend], path: Path) -> None:
    """Every measurement over time, in a PNG."""
    import matplotlib  # here: it takes a second and 60 MiB

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(trends), 1, sharex=True, figsize=(10, 2 * len(trends)), layout="constrained")
    minutes = [sample["seconds"] / 60 for sample in samples]
    for axis, (name, line) in zip(axes, trends.items(), strict=True):
        axis.plot(minutes, _series(samples, name), linewidth=0.9)
        axis.axvspan(0, minutes[-1] * WARM_UP, alpha=0.1)
        axis.set_title(f"{name}: {line.slope:+.1f} ± {line.noise:.1f} an hour: {line.verdict}", loc="left", fontsize=9)
        axis.ticklabel_format(useOffset=False)
    axes[-1].set_xlabel(f"minutes; {samples[-1]['requests']:.0f} requests; shaded: warm-up")
    figure.savefig(path, dpi=90)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench soak", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=whole_number(), default=3600, help="(default: %(default)s)")
    add(
        "--size",
        type=whole_number(),
        default=256,
        metavar="MIB",
        help="of the device; the budget is an eighth (%(default)s)",
    )
    add("--seed", type=int, help="of the traffic (default: a new one)")
    add("--folder", type=lambda text: Path(text).absolute(), help="for the results (default: a new temporary one)")
    add(
        "--failures",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="then also measure what N failed requests leave behind",
    )
    add("parameters", nargs="*", metavar="key=value", help="more for the server")
    return parser.parse_args(words)
