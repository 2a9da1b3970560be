"""scripts/pressure: guests of every size, under every load, swapping to zcache inside them or
outside.

A cell passes if its load ended by itself and verified what it had in memory, the guest truly
swapped, nothing was killed for memory, the server lived, its books balance (if it is inside) and
its counters tell of no loss, and the kernel's log has nothing to complain of. A task that is
blocked for a minute panics the guest; a guest that does not come to an end is made to dump its
tasks, and killed. Both are failures of the cell that they happened in; the cells that are left get
a new guest.

One guest takes all loads of a size and attachment, one after the other; a swap area inside is new
for each, one on the host serves them all. The tables are also written to a folder, as markdown and
JSON, beside the kernel log of each guest and what it printed; runs whose results are in there
already are kept, and those of now are added. Exit status 0 only if every cell of now passed.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from zcache.bench.pressure import reader
from zcache.bench.pressure.guest import LOAD_SECONDS, SWAP_SECONDS
from zcache.bench.pressure.loads import LOADS
from zcache.bench.pressure.results import Cell, print_tables, read_results, write_results
from zcache.bench.pressure.verdict import cells_of_log, judge_log, judge_report, judge_status
from zcache.errors import ZcacheError
from zcache.linux import standard_streams
from zcache.testvm import VmConfig, VmResult
from zcache.testvm.arguments import whole_number
from zcache.testvm.signals import end_in_order
from zcache.testvm.vm import run_in_vm

MEMORY_MIB: Final = (256, 384, 512, 900)
#: In less the stock kernel does not boot, or has no room for a server.
LEAST_MEMORY_MIB: Final = 192
ATTACHMENTS: Final = ("self", "host")
#: Of a guest's memory, for a server inside it. One that is outside gets as much.
BUDGET_SHARE: Final = 1 / 8
#: Of memory: the swap area. Loads have less than half of that out.
SIZE_SHARE: Final = 2
#: Of memory: what the reader reads.
FILES_SHARE: Final = 1.5
#: 16 to 40 s were seen.
BOOT_SECONDS: Final = 180
#: For CI: one guest.
SHORT: Final = {"memory": (384,), "attach": ("self",), "loads": ("heartbeat",), "seconds": 15}


def main() -> int:
    """Prints the table."""
    arguments = _parse()
    end_in_order()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-pressure-"))
    folder.mkdir(parents=True, exist_ok=True)
    earlier = read_results(folder)
    cells: list[Cell] = []
    first_run = max((cell.run for cell in earlier), default=0) + 1
    try:
        for run in range(first_run, first_run + arguments.runs):
            for memory_mib in arguments.memory:
                for attachment in arguments.attach:
                    for cell in run_cells(memory_mib, attachment, arguments.loads, arguments.seconds, run, folder):
                        cells.append(cell)
                        print(f"{cell.name}: {cell.verdict}", *cell.failures, sep="\n  ", flush=True)
    except ZcacheError as error:
        print(f"pressure: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        write_results([*earlier, *cells], folder)
    print_tables([*earlier, *cells])
    print(f"table, reports and kernel logs: {folder}")
    failed = sum(bool(cell.failures) for cell in cells)
    print(f"{failed} of {len(cells)} cells FAILED" if failed else f"OK: {len(cells)} cells passed")
    return 1 if failed else 0


def run_cells(
    memory_mib: int, attachment: str, loads: list[str], seconds: int, run: int, folder: Path
) -> Iterator[Cell]:
    """All loads in guests of one kind: one guest, and another one for what is left whenever one
    goes down."""
    left = list(loads)
    while left:
        done = list(_one_guest(memory_mib, attachment, left, seconds, run, folder))
        yield from done
        left = left[len(done) :]


def _one_guest(memory_mib: int, attachment: str, loads: list[str], seconds: int, run: int, folder: Path) -> list[Cell]:
    """The cells that a guest came to: at least one."""
    title = f"{run}-{memory_mib}M-{attachment}-{loads[0]}"
    share = folder / title
    shutil.rmtree(share, ignore_errors=True)  # of a run that was broken off before its first cell ended
    share.mkdir()
    budget_mib = int(memory_mib * BUDGET_SHARE)
    size_mib = memory_mib * SIZE_SHARE
    with ExitStack() as cleanup:
        work = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="zcache-pressure-")))
        files, backing = work / "files", work / "backing"
        reader.make(str(files), int(memory_mib * FILES_SHARE))
        disks = [files]
        parameters = [f"size={size_mib}M", f"budget={budget_mib}M", "hardening=require"]
        if attachment == "self":
            with backing.open("wb") as image:
                image.truncate((size_mib * 8 // 7 - budget_mib + 2) << 20)
            disks.append(backing)
        job = {
            "loads": loads,
            "seconds": seconds,
            "memory_mib": memory_mib,
            "budget_mib": budget_mib,
            "files": "/dev/disk/by-id/virtio-vmdisk0",
            "parameters": [*parameters, "backing=/dev/disk/by-id/virtio-vmdisk1"] if attachment == "self" else [],
        }
        (share / "job.json").write_text(json.dumps(job))
        config = VmConfig(
            memory=f"{memory_mib}M",
            disks=tuple(disks),
            timeout_seconds=BOOT_SECONDS + len(loads) * (seconds + LOAD_SECONDS + SWAP_SECONDS),
            share=share,
            kernel_log=folder / f"{title}.log",
            hung_task_panic=True,
            host_swap=None if attachment == "self" else (*parameters[:2], f"backing={backing}"),
        )
        command = [sys.executable, "-m", "zcache.bench.pressure.guest", str(share)]
        with (share / "output").open("wb") as output:
            result = run_in_vm(config, command, stdout=output, stderr=output)
    log, host_load = str(result.kernel_log), round(os.getloadavg()[0], 1)
    cells = [Cell(memory_mib, attachment, load, run, budget_mib, [], {}, log, host_load) for load in loads]
    return judge_guest(cells, share, result)


def judge_guest(cells: list[Cell], share: Path, result: VmResult) -> list[Cell]:
    """The cells that the guest came to, with what is known against them; the last one bears how the
    guest ended."""
    logs = cells_of_log(result.kernel_log.read_text(errors="replace"))
    came_to = [cell for cell in cells if cell.load in logs] or cells[:1]
    for cell in came_to:
        path = share / f"{cell.load}.json"
        if path.exists():
            cell.report = json.loads(path.read_text())
            cell.failures += judge_report(cell.report, cell.memory_mib)
        else:
            cell.failures.append("no report")
        cell.failures += judge_log(logs.get(cell.load, ""))
        # One server for all cells of this guest.
        cell.failures += judge_status(result.server_status)
    if result.exit_status != 0:
        said = (share / "output").read_text(errors="replace").strip().splitlines()[-1:]
        how = result.failure or f"the command in it ended with {result.exit_status}"
        came_to[-1].failures.append(" ".join([f"the guest: {how}", *said]))
    return came_to


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/pressure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--memory", type=_sizes, metavar="MIB,…", help=f"guests' memory (default: {','.join(map(str, MEMORY_MIB))})")
    add("--loads", type=_names(tuple(LOADS)), metavar="NAME,…", help=f"of {','.join(LOADS)} (default: all)")
    add("--attach", type=_names(ATTACHMENTS), metavar="NAME,…", help="the server is in the guest: self; host (both)")
    add("--seconds", type=whole_number(), help="how long a load runs once its memory is filled (default: 30)")
    add("--runs", type=whole_number(), default=1, help="of the whole (default: %(default)s)")
    add("--folder", type=lambda text: Path(text).absolute(), help="for the results (default: a new temporary one)")
    add("--short", action="store_true", help="the row that CI runs, for what is not given")
    arguments = parser.parse_args()
    everything = {"memory": MEMORY_MIB, "attach": ATTACHMENTS, "loads": tuple(LOADS), "seconds": 30}
    for name, default in (SHORT if arguments.short else everything).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    return arguments


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(whole_number(LEAST_MEMORY_MIB)(word) for word in text.split(","))


def _names(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        unknown = [word for word in words if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]}: give of {', '.join(known)}")
        return words

    return parse


if __name__ == "__main__":
    sys.exit(standard_streams.run("pressure", main, lost_output=125))
