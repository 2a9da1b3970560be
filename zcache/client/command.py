"""The `zcache` command: what a running server says about itself; and what is to be done before the
machine sleeps."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zcache import __version__
from zcache.control.ask import ask
from zcache.errors import BadInput, SwapError, ZcacheError
from zcache.inherited.start import run
from zcache.keeper.state import StateFolder
from zcache.linux.proc_swaps import ProcSwaps
from zcache.parameters import help_of_set
from zcache.swap import neighbours, outside

DEFAULT_CONTROL: Final = Path("/run/zcache/control")

TABLE_COLUMNS: Final = 240

MOMENTS: Final = (
    "pre: freeze whoever has pages in swap, and wait until all is quiet; post: thaw them, whatever came of it"
)

#: Counters that are 0 as long as nothing was ever wrong.
TROUBLES: Final = (
    "failed_puts",
    "checksum_errors",
    "decode_errors",
    "writeback_errors",
    "fetch_errors",
    "fetch_retries",
    "slow_writes",
    "slow_reads",
)


def command() -> int:
    """The `zcache` command: exit status 0; 1 when the books do not balance; 2 when there is no
    answer, or it cannot be printed. `zcache sleep` is run for what it does, and has statuses of its
    own."""
    is_run_for_output = sys.argv[1:2] != ["sleep"]
    return run("zcache", main, lost_output=2 if is_run_for_output else None, is_told=False)


def main() -> int:
    """The command, but for what becomes of its output."""
    arguments = _parse()
    if arguments.command == "sleep":
        from zcache.swap import sleep  # late: the others need none of it

        return sleep.command(arguments.moment, arguments.hibernate)
    return _ask_and_print(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="zcache", description="Ask a running zcache server.")
    parser.add_argument("--version", action="version", version=f"zcache {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("status", "what it stores and how well"),
        ("check", "walk a copy of the store's books: do they balance?"),
        ("set", "change how it works, for as long as the swap is on"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--control", type=Path, default=DEFAULT_CONTROL, help="control socket (default: %(default)s)"
        )
        command.add_argument("--json", action="store_true", help="every figure, as JSON")
        if name == "set":
            command.add_argument("setting", metavar="KEY=VALUE", help=help_of_set())
    text = "around a suspend, while the swap is on (systemd runs it by itself)"
    command = commands.add_parser("sleep", help=text, description=text)
    command.add_argument("moment", choices=("pre", "post"), help=MOMENTS)
    command.add_argument("--hibernate", action="store_true", help="take the swap off; turn it on again (see swap-up)")
    return parser.parse_args()


def _ask_and_print(arguments: argparse.Namespace) -> int:
    try:
        words = [arguments.command, *([arguments.setting] if arguments.command == "set" else [])]
        answer = ask(arguments.control, " ".join(words))
    except BadInput as error:
        print(f"zcache: {error}", file=sys.stderr)
        return 2
    except ZcacheError as error:
        hint = "" if _may_be_there(arguments.control) else "; swap-up turns a swap on, serve … control=PATH serves one"
        print(f"zcache: {error}{hint}", file=sys.stderr)
        return 2
    if arguments.command == "status":
        is_exempt = answer.get("hardening", {}).get("oom_score", False)
        troubles = outside.troubles(StateFolder(arguments.control.parent), answer["pid"], is_exempt=is_exempt)
        answer |= {"state": "degraded", "reasons": [*answer["reasons"], *troubles]} if troubles else {}
        answer |= {**_neighbours(), "backing_goes_with_swap": _backing_goes(arguments.control)}
    if arguments.json:
        print(json.dumps(answer, indent=2))
    elif arguments.command == "status":
        _print_status(answer)
    elif arguments.command == "set":
        _print_settings(answer)
    elif answer["balanced"]:
        print(f"balanced: {answer['stored_pages']} pages stored, {answer['lost_pages']} lost")
        for reason in answer.get("reasons", []):  # books may balance, and their pages lie on a dead disk
            print(f"but {reason}")
    else:
        print(f"NOT balanced: {answer['imbalance']}")
    return 0 if answer.get("balanced", True) else 1


def _neighbours() -> dict[str, Any]:
    """All swap of the machine, in the order in which the kernel fills it. Ours to find out, and not
    the server's, which serves requests meanwhile, and may not see it."""
    try:
        with contextlib.closing(ProcSwaps()) as swaps:
            areas = swaps.entries()
    except OSError:  # a kernel without swap, a container
        areas = []
    shown = [
        {
            "path": area.path,
            "type": area.kind,
            "size_bytes": area.size_kib << 10,
            "used_bytes": area.used_kib << 10,
            "priority": area.priority,
        }
        for area in neighbours.in_order(areas)
    ]
    return {"swap_areas": shown, "zswap": neighbours.is_zswap_on()}


def _backing_goes(control: Path) -> bool:
    """Whether swap-down will remove the backing, by what swap-up has left beside the control
    socket."""
    try:
        state = StateFolder(control.parent).load()
    except (SwapError, OSError):  # not swap-up's folder
        return False
    return bool(state and state.backing and state.backing.is_made and not state.backing.is_kept)


def _may_be_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that only its owner may enter
        return True


def _print_status(status: dict[str, Any]) -> None:
    """A table in the manner of zramctl; below it whether all is well, and if not, why."""
    stored_bytes = status["stored_pages"] * 4096
    columns = {
        "DISKSIZE": _human(status["size_bytes"]),
        "CODEC": status["codec"],
        "ALLOC": status["allocator"],
        "DATA": _human(stored_bytes),
        "COMPR": _human(status["compressed_bytes"]),
        "RATIO": status["ratio"] or "-",
        "SAME": str(status["same_filled_pages"]),
        "RAM": f"{_human(status['resident_frames'] * status['frame_bytes'])}/{_human(status['budget_bytes'])}",
        "CLEAN": _human(status["clean_frames"] * status["frame_bytes"]),
        "EPHEMERAL": _human(status["ephemeral_frames"] * status["frame_bytes"]),
        "BACKING": f"{_human(status['backing_frames'] * status['frame_bytes'])}"
        f"/{_human(status['backing_capacity_frames'] * status['frame_bytes'])}",
        "ENCRYPT": "yes" if status["encrypt"] else "no",
        "WRITTEN-BACK": _human(status["written_back_frames"] * status["frame_bytes"]),
        "RSS": _human(status["rss_bytes"]),
        "LOCKED": _human(status["locked_bytes"]),
    }
    _print_table(columns, [list(map(str, columns.values()))])
    lines = [f"state: {status['state'].upper()}", *(f"  {reason}" for reason in status["reasons"])]
    if status["backing"]:
        goes = " (swap-up has made it, swap-down removes it)" if status.get("backing_goes_with_swap") else ""
        lines.append(f"backing: {status['backing']}{goes}")
    if status["server_number"] > 1:
        lines.append(f"server number {status['server_number']} of this swap; what it counts, it counts from its start")
    if status["recompress"] != "off":
        saved = _human(status["recompressed_saved_bytes"])
        lines.append(f"recompressed with {status['recompress']}: {status['recompressed_pages']} pages, {saved} saved")
    least, most = (status.get(f"budget_{which}_bytes", status["budget_bytes"]) for which in ("min", "max"))
    if least < most or status["budget_bytes"] != most:
        lines.append(f"budget: {_human(status['budget_bytes'])} now, {_human(least)} to {_human(most)}")
    for decision in status.get("budget_decisions", [])[:3]:
        clock = time.strftime("%H:%M:%S", time.localtime(decision["seconds"]))
        sizes = f"{_human(decision['before_bytes'])} to {_human(decision['after_bytes'])}"
        lines.append(f"  {clock} {sizes}: {decision['why']}")
    for export in status.get("clean_exports", []):
        hits = export["gets"] - export["misses"]
        share = f" ({hits * 100 // export['gets']}%)" if export["gets"] else ""
        kind = "read-only" if export["read_only"] else "read-write"
        lines.append(
            f"clean export {export['name']}: {_human(export['size_bytes'])}, {kind}; {hits} of {export['gets']} pages "
            f"from RAM{share}, {export['file_reads']} reads of the file"
        )
    troubles = [f"{status[name]} {name.replace('_', ' ')}" for name in TROUBLES if status[name]]
    if troubles:
        lines.append("since the start: " + ", ".join(troubles))
    exposed = [name for name, holds in status["hardening"].items() if not holds]
    if exposed:
        lines.append("not protected: " + ", ".join(exposed))
    print("\n".join(lines))
    areas = [
        [area["path"], area["type"], _human(area["size_bytes"]), _human(area["used_bytes"]), str(area["priority"])]
        for area in status.get("swap_areas", [])
    ]
    if areas:
        print("all swap, as the kernel fills it:" + (" zswap, and then" if status["zswap"] else ""))
        _print_table(("NAME", "TYPE", "SIZE", "USED", "PRIO"), areas)


def _print_table(names: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """No figure is ever cut short: a narrow terminal folds the line."""
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("NAME", "TYPE") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=TABLE_COLUMNS).print(table)


def _print_settings(settings: dict[str, Any]) -> None:
    """What all are now."""
    least, most = settings["budget_min_bytes"], settings["budget_max_bytes"]
    print(f"budget={_human(least)}" + (f"..{_human(most)}" if most > least else ""))
    print(f"low_watermark={_human(settings['low_watermark_bytes'])}")
    print(f"high_watermark={_human(settings['high_watermark_bytes'])}")
    print(f"recompress_share={settings['recompress_share']:.2%}")
    print(f"admit={settings['admit']}")


def _human(size_bytes: float) -> str:
    for suffix in ("B", "K", "M", "G"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f}{suffix}" if suffix == "B" else f"{size_bytes:.1f}{suffix}"
        size_bytes /= 1024
    return f"{size_bytes:.1f}T"


if __name__ == "__main__":
    sys.exit(command())
