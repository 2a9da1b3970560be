"""scripts/run: see it work. A stock kernel in a small guest swaps to zcache inside that guest while
stress-ng overcommits its memory.

Exit status 0 only if stress-ng verified its memory, the kernel log has nothing to complain of, the
store's books balance, and pages were in fact swapped out, in and written back.
"""

import argparse
import contextlib
import json
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from zcache.bench.run import on_engines
from zcache.bench.run.disturbance import load_seconds
from zcache.bench.run.disturbance import parse as parse_disturbance
from zcache.errors import ZcacheError
from zcache.linux import standard_streams
from zcache.testvm import VmConfig, VmResult
from zcache.testvm.arguments import whole_number
from zcache.testvm.signals import end_in_order
from zcache.testvm.vm import run_in_vm

#: What it writes when a server has died: the last is how it looks whether to send again what that
#: had not answered.
LOST_CONNECTION: Final = re.compile(r"nbd\d+: (?:Dead connection|Possible stuck request)")

#: What a kernel writes when swap, or the machine, is in trouble.
TROUBLE: Final = re.compile(
    r"I/O error|[Ee]rror on swap-device|blocked for more than|hung_task: blocked|Kernel panic|Oops|BUG:|WARNING:|"
    r"kernel BUG at|\[#\d+\]|general protection|segfault at|detected stalls|corruption|soft lockup|Bad swap|"
    r"swap_info_get|nbd\d+: (?:Connection timed out|Dead connection|Possible stuck request)|Out of memory|oom-kill"
)

#: Any of these in a server's status means that pages were lost, or nearly.
LOSSES: Final = ("lost_pages", "failed_puts", "checksum_errors", "decode_errors", "writeback_errors", "fetch_errors")

#: Of the load, and of what comes before and after it, with room for a slow machine.
LOAD_SECONDS: Final = 90
OTHER_SECONDS: Final = 800

PARAMETERS: Final = ("size=1536M", "budget=160M", "codec=lz4", "hardening=require")
#: The backing disk: what size needs beyond the budget if nothing compresses, and a header.
DISK_BYTES: Final = (1536 * 8 // 7 - 160 + 2) << 20


def parse() -> argparse.Namespace:
    """The words given, with `seconds` of load as they come to be."""
    parser = argparse.ArgumentParser(prog="scripts/run", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--seconds",
        type=whole_number(),
        help=f"how long stress-ng runs (default: {LOAD_SECONDS}, with --remote {on_engines.LOAD_SECONDS}, "
        "or what --disturb needs)",
    )
    parser.add_argument("--memory", default="900M", help="the guest's memory (default: %(default)s)")
    parser.add_argument("--stress-bytes", default="1100M", help="memory that stress-ng uses (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=whole_number(), help=f"seconds until the guest is given up (default: {OTHER_SECONDS} more)"
    )
    parser.add_argument(
        "--disturb",
        metavar="KIND:TIMES:SECONDS",
        help="meanwhile kill, or upgrade, the server so many times, so often: kill:10:15",
    )
    parser.add_argument(
        "--remote",
        action="store_true",
        help="frames go to two engines (Redis or Valkey) on this machine first, and one of them is killed half way",
    )
    parser.add_argument(
        "--plot", type=lambda text: Path(text).absolute(), help="with --remote: the PNG to make (default: a new one)"
    )
    parser.add_argument(
        "--pager",
        action="store_true",
        help="instead, without VM and swap: an array larger than the RAM that it may take, by the pager; one minute",
    )
    parser.add_argument("parameters", nargs="*", help=f"server parameters besides {' '.join(PARAMETERS)} backing=DISK")
    arguments = parser.parse_args()
    if arguments.remote and arguments.disturb:
        parser.error("--remote disturbs engines: give it, or --disturb")
    if arguments.plot and not arguments.remote:
        parser.error("--plot is of the engines of --remote: give both")
    try:
        usual = on_engines.LOAD_SECONDS if arguments.remote else LOAD_SECONDS
        arguments.seconds = arguments.seconds or (load_seconds(arguments.disturb) if arguments.disturb else usual)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _show_pager() -> int:
    from zcache.bench.pager import demo  # which nobody else needs

    try:
        return demo.main()
    except ZcacheError as error:
        print(f"run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def main() -> int:
    """Prints the report."""
    arguments = parse()
    end_in_order()
    if arguments.pager:
        return _show_pager()
    # rand-set: every page compresses to a little less than half. With "all" methods it is chance
    # whether the pages that are swapped out are same-filled, and then the budget is never exhausted
    # (one run in three).
    load = ["stress-ng", "--vm", "2", "--vm-bytes", arguments.stress_bytes, "--vm-method", "rand-set", "--vm-keep"]
    load += ["--verify", "--timeout", f"{arguments.seconds}s", "--metrics-brief"]

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zcache-run-")))
        disk, report_path = folder / "disk", folder / "share" / "report.json"
        report_path.parent.mkdir()
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        config = VmConfig(
            memory=arguments.memory,
            disks=(disk,),
            share=report_path.parent,
            network=arguments.remote,
            timeout_seconds=arguments.timeout or arguments.seconds + OTHER_SECONDS,
        )
        command = [sys.executable, "-m", "zcache.bench.run.guest", str(report_path)]
        command += ["--disturb", arguments.disturb] if arguments.disturb else []
        try:
            engines: list[str] = []
            if arguments.remote:
                options, engines = stack.enter_context(on_engines.two_engines(arguments.seconds))
                command += options
            command += [*parameters(arguments.parameters, arguments.remote), *engines, "--", *load]
            result = run_in_vm(config, command)
        except ZcacheError as error:
            print(f"run: {error}", file=sys.stderr)
            return 125
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        report = json.loads(report_path.read_text()) if report_path.exists() else None
    failures = judge(result, report, arguments.disturb)
    if report:
        print_report(report, result)
    if report and arguments.remote:
        failures += on_engines.failures(report)
        print(on_engines.draw(report, arguments.plot))
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if report and (failures or arguments.disturb or arguments.remote):
        print(f"the server's log:\n{report['server_log']}")
    if failures:
        print(f"the guest's kernel log is kept in {result.kernel_log}", file=sys.stderr)
        return 1
    result.kernel_log.unlink()
    print("OK: every page came back as it was")
    return 0


def parameters(given: Sequence[str], is_remote: bool = False) -> list[str]:
    """The server's: the usual ones, but for those that were given."""
    usual = (*PARAMETERS, *(on_engines.PARAMETERS if is_remote else ()), "backing=/dev/disk/by-id/virtio-vmdisk0")
    words = {word.partition("=")[0]: word for word in usual}
    keys = {word.partition("=")[0] for word in given}
    return [*(word for key, word in words.items() if key not in keys), *given]


def kernel_troubles(log: str, *, disturbed: bool = False) -> list[str]:
    """The lines of a kernel log that tell of trouble; a server that was ended on purpose leaves
    lost connections."""
    return [
        line
        for line in log.splitlines()
        if TROUBLE.search(line) and "ommand line: " not in line and not (disturbed and LOST_CONNECTION.search(line))
    ]


def losses(status: dict[str, Any]) -> list[str]:
    """What a server's counters tell of pages that were lost, or nearly."""
    return [f"{name} is {status[name]}" for name in LOSSES if status[name]]


def judge(result: VmResult, report: dict[str, Any] | None, disturbance: str | None = None) -> list[str]:
    """Everything that keeps a run from being a success."""
    failures = []
    if result.exit_status != 0:
        failures.append(result.failure or f"the run in the guest ended with exit status {result.exit_status}")
    troubles = kernel_troubles(result.kernel_log.read_text(errors="replace"), disturbed=bool(disturbance))
    failures += [f"kernel log: {line}" for line in troubles[:10]]
    if not report:
        return [*failures, "the guest left no report"]
    if report["load_exit_status"] != 0:
        failures.append(f"stress-ng ended with {report['load_exit_status']}:\n{report['load_output']}")
    if disturbance and report["disturbed"] != parse_disturbance(disturbance)[1]:
        failures.append(f"the server was disturbed {report['disturbed']} times only: {report['disturbance_failure']}")
    if not report["check"]["balanced"]:
        failures.append(f"the books do not balance: {report['check']['imbalance']}")
    status = report["status"]
    # A write that an engine's death has cut short is made again, elsewhere.
    failures += losses(status | {"writeback_errors": 0} if "whereabouts" in report else status)
    for name in ("pages_out", "pages_in"):
        if not report[name]:
            failures.append(f"nothing was swapped ({name} is 0): the load is too small")
    if not status["written_back_frames"] + status["backing_frames"]:
        failures.append(
            f"no frame was written back: {report['load_seconds']:.0f} s of load did not exhaust the budget; "
            "is the machine busy? Give --seconds, or a smaller budget="
        )
    return failures


def print_report(report: dict[str, Any], result: VmResult) -> None:
    """What was seen, as a table."""
    status = report["status"]
    verdict = "verified" if report["load_exit_status"] == 0 else f"exit status {report['load_exit_status']}"
    mebibytes = {
        name: f"{status[name] / (1 << 20):.1f} MiB" for name in ("rss_bytes", "locked_bytes", "compressed_bytes")
    }
    rows = {
        "pages swapped out, in (/proc/vmstat)": f"{report['pages_out']}, {report['pages_in']}",
        "pages stored": str(status["stored_pages"]),
        "same-filled, raw": f"{status['same_filled_pages']}, {status['raw_pages']}",
        "compressed to": f"{mebibytes['compressed_bytes']}: codec's ratio {status['codec_ratio']}",
        "ratio, pages to frames": str(status["ratio"]),
        f"frames of {status['frame_bytes'] >> 10} KiB in RAM": f"{status['resident_frames']} of "
        f"{status['budget_frames']} ({status['clean_frames']} clean)",
        "frames written back": f"{status['written_back_frames']} ({status['backing_frames']} below now)",
        "frames read back, along (used)": f"{status['fetched_frames']}, {status['readahead_frames']} "
        f"({status['readahead_hits']})",
        "recompressed": f"{status['recompressed_pages']} pages ({status['recompress']})",
        "reclaimed in the background, by a put": f"{status['reclaim_background']}, {status['reclaim_sync']}",
        "server RSS, locked": f"{mebibytes['rss_bytes']}, {mebibytes['locked_bytes']}",
        "keeper, standby, without the image": f"{report['keeper_kib'] >> 10} MiB, {report['standby_kib'] >> 10} MiB",
        "server's page faults under load": str(report["server_page_faults"]),
        "protections that do not hold": ", ".join(k for k, holds in status["hardening"].items() if not holds) or "none",
        "longest stall of a read": f"{report['longest_stall_seconds']} s",
        "server killed or replaced": f"{report.get('disturbed', 0)} times",
        "seconds: load, swapoff, all": f"{report['load_seconds']}, {report['swap_off_seconds']}, {result.seconds:.0f}",
        **(on_engines.rows(report) if "whereabouts" in report else {}),
        "stress-ng": verdict,
        "books": "balanced" if report["check"]["balanced"] else "NOT balanced",
    }
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(standard_streams.run("run", main, lost_output=125))
