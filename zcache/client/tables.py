"""A server's answers as people read them: tables in the manner of zramctl, and lines below."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zcache.control.answers import TROUBLES, Audit, CleanExport, Decision, RegionStatus, SettingsNow, Status, SwapArea
from zcache.sizes import human

#: No terminal: whatever its width, no figure is cut short.
TABLE_COLUMNS: Final = 240

#: Names that are left-aligned; figures are not.
_LEFT: Final = ("NAME", "TYPE", "OWNER", "HOST", "STATE", "ENGINE", "POLICY")

#: Of the latest decisions of the budget.
_SHOWN_DECISIONS: Final = 3


def print_status(status: Status) -> None:
    """A table of the store; below it whether all is well, and if not, why; then all swap."""
    columns = dict(_columns(status))
    print_table(columns, [list(columns.values())])
    print("\n".join(_lines(status)))
    regions = [_region_row(region) for region in status.get("regions", [])]
    if regions:
        print("regions (microseconds within which half of the faults were served, and 99 of 100):")
        print_table(("PROCESS", "SIZE", "LIMIT", "RESIDENT", "STORED", "FAULTS", "P50", "P99", "LOST"), regions)
    areas = [_area_row(area) for area in status.get("swap_areas", [])]
    if areas:
        print("all swap, as the kernel fills it:" + (" zswap, and then" if status["zswap"] else ""))
        print_table(("NAME", "TYPE", "SIZE", "USED", "PRIO"), areas)


def print_settings(settings: SettingsNow) -> None:
    """What all are now."""
    least, most = settings["budget_min_bytes"], settings["budget_max_bytes"]
    print(f"budget={human(least)}" + (f"..{human(most)}" if most > least else ""))
    print(f"low_watermark={human(settings['low_watermark_bytes'])}")
    print(f"high_watermark={human(settings['high_watermark_bytes'])}")
    print(f"recompress_share={settings['recompress_share']:.2%}")
    print(f"admit={settings['admit']}")


def print_audit(audit: Audit) -> None:
    """Whether the books balance."""
    if not audit["balanced"]:
        print(f"NOT balanced: {audit['imbalance']}")
        return
    print(f"balanced: {audit['stored_pages']} pages stored, {audit['lost_pages']} lost")
    for reason in audit.get("reasons", []):  # books may balance, and their pages lie on a dead disk
        print(f"but {reason}")


# The table of the store


def _columns(status: Status) -> Iterator[tuple[str, str]]:
    def frames(count: int) -> str:
        return human(count * status["frame_bytes"])

    yield "DISKSIZE", human(status["size_bytes"])
    yield "CODEC", status["codec"]
    yield "ALLOC", status["allocator"]
    yield "DATA", human(status["stored_pages"] * 4096)
    yield "COMPR", human(status["compressed_bytes"])
    yield "RATIO", str(status["ratio"] or "-")
    yield "SAME", str(status["same_filled_pages"])
    yield "RAM", f"{frames(status['resident_frames'])}/{human(status['budget_bytes'])}"
    yield "CLEAN", frames(status["clean_frames"])
    yield "EPHEMERAL", frames(status["ephemeral_frames"])
    yield "BACKING", f"{frames(status['backing_frames'])}/{frames(status['backing_capacity_frames'])}"
    yield "ENCRYPT", "yes" if status["encrypt"] else "no"
    yield "WRITTEN-BACK", frames(status["written_back_frames"])
    yield "RSS", human(status["rss_bytes"])
    yield "LOCKED", human(status["locked_bytes"])


# The lines below it


def _lines(status: Status) -> Iterator[str]:
    yield f"state: {status['state'].upper()}"
    for reason in status["reasons"]:
        yield f"  {reason}"
    if status["backing"]:
        goes = " (swap-up has made it, swap-down removes it)" if status.get("backing_goes_with_swap") else ""
        yield f"backing: {status['backing']}{goes}"
    if "page_loop" in status:  # a server that was started by an earlier version does not say
        words = {"python": "in Python, which takes more CPU"}
        yield f"page loop: {words.get(status['page_loop'], status['page_loop'])}"
    if status["server_number"] > 1:
        yield f"server number {status['server_number']} of this swap; what it counts, it counts from its start"
    if status["recompress"] != "off":
        saved = human(status["recompressed_saved_bytes"])
        yield f"recompressed with {status['recompress']}: {status['recompressed_pages']} pages, {saved} saved"
    yield from _budget_lines(status)
    yield from _remote_lines(status)
    yield from map(_export_line, status.get("clean_exports", []))
    yield from _trouble_lines(status)


def _budget_lines(status: Status) -> Iterator[str]:
    """Of one that can change, or has changed."""
    now = status["budget_bytes"]
    least, most = status.get("budget_min_bytes", now), status.get("budget_max_bytes", now)
    if least < most or now != most:
        yield f"budget: {human(now)} now, {human(least)} to {human(most)}"
    yield from map(_decision_line, status.get("budget_decisions", [])[:_SHOWN_DECISIONS])


def _remote_lines(status: Status) -> Iterator[str]:
    """What engines hold, and each of them."""
    if "remote_peers" not in status:
        return
    held, most = (status[name] * status["frame_bytes"] for name in ("remote_frames", "remote_capacity_frames"))
    paid = human(status["remote_bytes"])
    yield f"remote: {human(held)} of {human(most)}, for which engines pay {paid}; {status['remote_name']} there"
    for peer in status["remote_peers"]:
        limit = "" if peer["limit_bytes"] is None else f" of {human(peer['limit_bytes'])}"
        copies = f"{human(peer['frames'] * status['frame_bytes'])}{limit}, {human(peer['foreign_bytes'])} of others"
        yield f"  {peer['name']}: {'up' if peer['is_up'] else 'DOWN'}, {copies}"


def _decision_line(decision: Decision) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(decision["seconds"]))
    return f"  {clock} {human(decision['before_bytes'])} to {human(decision['after_bytes'])}: {decision['why']}"


def _export_line(export: CleanExport) -> str:
    hits = export["gets"] - export["misses"]
    share = f" ({hits * 100 // export['gets']}%)" if export["gets"] else ""
    kind = "read-only" if export["read_only"] else "read-write"
    return (
        f"clean export {export['name']}: {human(export['size_bytes'])}, {kind}; {hits} of {export['gets']} pages "
        f"from RAM{share}, {export['file_reads']} reads of the file"
    )


def _trouble_lines(status: Status) -> Iterator[str]:
    """What was ever wrong, and what does not hold now."""
    counters: Mapping[str, object] = status
    troubles = [f"{counters[name]} {name.replace('_', ' ')}" for name in TROUBLES if counters[name]]
    if troubles:
        yield "since the start: " + ", ".join(troubles)
    exposed = [name for name, holds in status["hardening"].items() if not holds]
    if exposed:
        yield "not protected: " + ", ".join(exposed)


def _region_row(region: RegionStatus) -> list[str]:
    return [
        str(region["client_pid"] or "-"),
        human(region["region_bytes"]),
        human(region["limit_bytes"]),
        human(region["resident_pages"] * 4096),
        human(region["stored_region_pages"] * 4096),
        str(region["faults"]),
        f"{region['fault_p50_us']:.0f}",
        f"{region['fault_p99_us']:.0f}",
        str(region["lost_region_pages"]),
    ]


def _area_row(area: SwapArea) -> list[str]:
    return [area["path"], area["type"], human(area["size_bytes"]), human(area["used_bytes"]), str(area["priority"])]


def print_table(names: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """No figure is ever cut short: a narrow terminal folds the line."""
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=TABLE_COLUMNS).print(table)
