"""`scripts/bench filesystems`: what zcache says of each file system and kind of device, and what it
loses there.

As root, on images in a folder. For each: a server with a backing there ("works"; "warned", with a
WARNING line; "refused", by it or by swap-up), the file system is filled by a neighbour, and all of
the device is overwritten several times with pages that do not compress. What a tool or the kernel
lacks is said in its row. In the test VM, whose kernel has them all:

    scripts/vm --memory 700M --disk 2G --timeout 3600 -- \\
        .venv/bin/python -P -m zcache.bench filesystems \\
        --disk /dev/disk/by-id/virtio-vmdisk0 --folder /tmp/table
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from zcache.bench.filesystems.images import Bench
from zcache.bench.filesystems.places import PLACES, Place
from zcache.bench.report import Figure, Report
from zcache.bench.served import REPOSITORY, serve
from zcache.errors import BadInput, EnvironmentProblem, SwapError
from zcache.swap.backing import refuse_unsafe
from zcache.testvm.arguments import whole_number

BUDGET_MIB: Final = 8
#: A disk that hangs is found out.
SECONDS: Final = 300


def main(words: Sequence[str]) -> int:
    """Prints the table; exit status 1 if a page was lost where zcache says that it works."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench filesystems", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(map(repr, PLACES))}")
    add("--size", type=whole_number(16), default=48, metavar="MIB", help="of the device (%(default)s)")
    add("--rounds", type=whole_number(), default=3, help="how often all of it is written (%(default)s)")
    add("--disk", type=Path, help="a block device for the images, which is overwritten (default: in --folder)")
    add("--folder", type=lambda text: Path(text).absolute(), help="for images and results (default: in /var/tmp)")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.names if name not in PLACES]
    if unknown:
        raise BadInput(f"{unknown[0]}: no such place; give {', '.join(map(repr, PLACES))}")
    if os.geteuid() != 0:
        raise BadInput("only root can mount what is measured; run it as root")
    report = Report(
        arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-", dir="/var/tmp")), Console(width=170)
    )
    rows = measure(report, arguments)
    report.save()
    report.console.print(f"report.json: {report.folder}")
    return int(any(row["zcache says"] == "works" and row["pages lost"] != 0 for row in rows))


def measure(report: Report, arguments: argparse.Namespace) -> list[dict[str, Figure]]:
    """A row for each place, into the report."""
    rows: list[dict[str, Figure]] = []
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="images-", dir=report.folder)))
        if arguments.disk:
            disk = Bench(folder, undo, arguments.size)
            disk.run("mke2fs", "-q", "-F", "-t", "ext4", arguments.disk)
            folder = disk.mounted(arguments.disk, "ext4")
        for name in arguments.names or PLACES:
            begin = time.monotonic()
            rows.append({"place": name, **_try(PLACES[name], folder, arguments)})
            print(f"{name}: {rows[-1]['zcache says']} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)
    title = (
        f"{arguments.size} MiB overwritten {arguments.rounds} times beside a full file system, {BUDGET_MIB} MiB of RAM"
    )
    report.table("filesystems", title, rows)
    return rows


def _row(says: str, lost: int | None = None, failed: int | None = None, why: str = "") -> dict[str, Figure]:
    return {"zcache says": says, "pages lost": lost, "writes failed": failed, "because": why}


def _try(make: Callable[[Bench], Place], images: Path, arguments: argparse.Namespace) -> dict[str, Figure]:
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="place-", dir=images)))
        bench = Bench(folder, undo, arguments.size * 8 // 7)
        try:
            place = make(bench)
        except (EnvironmentProblem, OSError, subprocess.SubprocessError) as problem:
            return _row("(not tried)", why=str(problem).replace(str(folder), "…"))
        refusal = ""
        parameters = [f"size={arguments.size}M", f"budget={BUDGET_MIB}M", f"backing={place.backing}", *place.words]
        try:
            refuse_unsafe(parameters)
        except SwapError as error:
            refusal = f"swap-up: {error}"
        log = images / "server.log"
        try:
            with serve(log, *parameters) as server:
                place.fill()
                found = _overwrite(server.socket, arguments.rounds)
        except EnvironmentProblem as error:
            said = [line for line in str(error).splitlines() if "error: " in line] or [str(error)]
            return _row("refused", why=said[-1].partition("error: ")[2] or said[-1])
        warning = next((line for line in log.read_text().splitlines() if "WARNING: backing" in line), "")
        why = refusal or warning.partition("WARNING: ")[2]
        says = "refused" if refusal else "warned" if warning else "works"
        return _row(
            says, found.get("lost"), found.get("failed_writes"), found.get("why") or why.replace(str(folder), "…")
        )


def _overwrite(socket: Path, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "zcache.bench.filesystems.overwrite", str(socket), str(rounds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=REPOSITORY)
    except subprocess.TimeoutExpired:
        return {"why": f"it hangs: no end after {SECONDS} s"}
    if done.returncode:
        return {"why": done.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found
