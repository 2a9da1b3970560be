"""`scripts/bench clean`: reads of a hot set, and of a scan of ten times the budget beside it, from
a clean export.

In the test VM, on a disk of heap pages (corpus.py), each page verified. The cache is off (nbdkit's
own file plugin, and the kernel told to keep nothing), or admits all that is read (`admit=always`),
or what is read twice (`admit=reused`). A hit is a hot page that took no read of the disk. Disks are
files in the host's page cache: no disk is faster.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from zcache.bench import corpus
from zcache.bench.clean.load import PAGE_BYTES, WARM_ROUNDS
from zcache.bench.report import Figure, Report
from zcache.errors import EnvironmentProblem
from zcache.testvm import VmConfig
from zcache.testvm.arguments import whole_number
from zcache.testvm.vm import run_in_vm

KINDS: Final = ("off", "always", "reused")
CORPUS_PAGES: Final = 8192
PAGES_A_MIB: Final = (1 << 20) // PAGE_BYTES
SECONDS: Final = 1200


def main(words: Sequence[str]) -> int:
    """Prints the table; exit status 1 if a page was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/bench clean", description=__doc__)
    add = parser.add_argument
    add("--budget", type=whole_number(2), default=16, metavar="MIB", help="(%(default)s)")
    add("--hot", type=whole_number(), default=24, metavar="MIB", help="of pages that compress to a third (%(default)s)")
    add("--scan", type=whole_number(), default=10, metavar="BUDGETS", help="as many times the budget (%(default)s)")
    add("--only", choices=KINDS, help="one row")
    add("--seed", type=int, default=1)
    add("--folder", type=lambda text: Path(text).absolute(), help="for the results (default: a new temporary one)")
    arguments = parser.parse_args(words)
    report = Report(arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-")), Console(width=150))
    rows = measure(report, arguments)
    report.save()
    report.console.print(f"report.json: {report.folder}")
    return int(any(row["pages wrong"] for row in rows))


def measure(report: Report, arguments: argparse.Namespace) -> list[dict[str, Figure]]:
    """A guest for each row, into the report."""
    hot_pages, scan_pages = arguments.hot * PAGES_A_MIB, arguments.scan * arguments.budget * PAGES_A_MIB
    job = {"hot_pages": hot_pages, "scan_pages": scan_pages, "budget_mib": arguments.budget, "seed": arguments.seed}
    rows: list[dict[str, Figure]] = []
    parts: list[dict[str, Figure]] = []
    with tempfile.TemporaryDirectory(prefix="zcache-clean-") as name:
        disk, share = Path(name) / "disk", Path(name) / "share"
        share.mkdir()
        pages = corpus.mixed(corpus.gather(CORPUS_PAGES), CORPUS_PAGES, arguments.seed).pages
        with disk.open("wb") as file:
            for number in range(hot_pages + scan_pages):
                file.write(_numbered(pages[number % len(pages)], number))
        for kind in [arguments.only] if arguments.only else KINDS:
            (share / "job.json").write_text(json.dumps(job | {"kind": kind}))
            figures = _run(disk, share)
            rows.append(
                {
                    "cache": kind if kind == "off" else f"admit={kind}",
                    **{name: figures[name] for name in figures if name.endswith(", hits")},
                    "disk reads": sum(figures[name] for name in figures if name.endswith(", disk reads")),
                    "seconds": figures["seconds"],
                    "pages wrong": figures["wrong_pages"],
                }
            )
            parts += [
                {
                    "cache": kind,
                    "part": name.removesuffix(", s"),
                    "seconds": figures[name],
                    "disk reads": figures[name.replace(", s", ", disk reads")],
                }
                for name in figures
                if name.endswith(", s")
            ]
    title = f"{arguments.hot} MiB read {WARM_ROUNDS} times, with a scan of {arguments.scan * arguments.budget} MiB, and"
    report.table("clean", f"{title} once more, twice; budget {arguments.budget} MiB; shares of hot pages in RAM", rows)
    report.table("clean parts", "part by part", parts)
    return rows


def _numbered(page: bytes, number: int) -> bytes:
    """A page that no other place of the disk has; one that is all zeros stays so."""
    return page[:2048] + number.to_bytes(8, "little") + page[2056:] if any(page) else page


def _run(disk: Path, share: Path) -> dict[str, Any]:
    (share / "report.json").unlink(missing_ok=True)
    config = VmConfig(disks=(disk,), share=share, timeout_seconds=SECONDS)
    result = run_in_vm(config, [sys.executable, "-m", "zcache.bench.clean.guest", str(share)])
    if not (share / "report.json").exists() or result.exit_status is None:
        trouble = result.failure or f"exit status {result.exit_status}"
        raise EnvironmentProblem(f"the run in the guest failed: {trouble}; its kernel log: {result.kernel_log}")
    result.kernel_log.unlink()
    figures: dict[str, Any] = json.loads((share / "report.json").read_text())
    return figures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
