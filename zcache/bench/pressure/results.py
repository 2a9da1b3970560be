"""What scripts/pressure found: its cells, as tables for the terminal and for a folder."""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from zcache.testvm.kvm import newest_kernel, usable_kvm


@dataclass
class Cell:
    """One load in one guest, and what came of it; `failures` is empty if it passed."""

    memory_mib: int
    attachment: str
    load: str
    run: int
    budget_mib: int
    failures: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    kernel_log: str = ""
    #: Of the machine that the guest ran on, over its last minute (load average): emulation shares
    #: its cpus.
    host_load: float | None = None

    @property
    def name(self) -> str:
        return f"{self.memory_mib}M {self.attachment} {self.load}"

    @property
    def verdict(self) -> str:
        return "FAILED" if self.failures else "passed"

    def longest_stall_seconds(self) -> float | None:
        """Of a touch of a page, or of an ordinary program that did nothing but tick; None when
        neither was seen."""
        touch = self.report.get("programs", [{}])[0].get("longest_touch_seconds")
        stalls = [stall for stall in (self.report.get("longest_gap_seconds"), touch) if stall is not None]
        return max(stalls, default=None)

    def figures(self) -> list[str]:
        """As in HEADINGS."""
        report = self.report
        foreground = report.get("programs", [{}])[0]
        status = report.get("status", {})
        values = [self.memory_mib, self.attachment, self.load, self.budget_mib, report.get("load_mib")]
        values += [report.get("pages_out"), report.get("pages_in"), status.get("written_back_frames")]
        values += [report.get("longest_gap_seconds"), foreground.get("longest_touch_seconds")]
        values += [report.get("load_seconds"), report.get("swap_off_seconds"), self.host_load, self.verdict]
        return ["-" if value is None else str(value) for value in values]


HEADINGS: Final = (
    *("memory MiB", "swap", "load", "budget MiB", "load MiB", "pages out", "in", "frames written back"),
    *("longest gap s", "touch s", "load s", "swapoff s", "host load", "verdict"),
)


def print_tables(cells: list[Cell]) -> None:
    """One row a cell, and then one a kind of guest."""
    console = Console(width=170)
    for headings, rows in (HEADINGS, [cell.figures() for cell in cells]), summary(cells):
        table = Table(box=None)
        for heading in headings:
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def summary(cells: list[Cell]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: for each kind of guest and load the longest stall of all runs, in seconds,
    and what failed."""
    loads = list(dict.fromkeys(cell.load for cell in cells))
    kinds = list(dict.fromkeys((cell.memory_mib, cell.attachment, cell.budget_mib) for cell in cells))
    rows = []
    for kind in kinds:
        row = [str(value) for value in kind]
        for load in loads:
            same = [
                cell
                for cell in cells
                if (cell.memory_mib, cell.attachment, cell.budget_mib, cell.load) == (*kind, load)
            ]
            row.append(_outcome(same))
        rows.append(row)
    return ["memory MiB", "swap", "budget MiB", *(f"{load} s" for load in loads)], rows


def _outcome(cells: list[Cell]) -> str:
    failed = sum(bool(cell.failures) for cell in cells)
    stalls = [stall for cell in cells if (stall := cell.longest_stall_seconds()) is not None]
    longest = f"{max(stalls):.1f}" if stalls else "-"
    return f"{longest}, {failed} of {len(cells)} FAILED" if failed else longest


def write_results(cells: list[Cell], folder: Path) -> None:
    """`pressure.json` and `pressure.md`."""
    machine = (
        f"{time.strftime('%Y-%m-%d')}, {'KVM' if usable_kvm() else 'software emulation'} on {os.cpu_count()} cpus "
        f"({platform.machine()}), guest kernel {newest_kernel().name.removeprefix('vmlinuz-')}, 2 cpus"
    )
    rows = [asdict(cell) | {"verdict": cell.verdict} for cell in cells]
    (folder / "pressure.json").write_text(json.dumps({"machine": machine, "cells": rows}, indent=2) + "\n")
    runs = len({cell.run for cell in cells})
    lines = [f"{machine}. {runs} runs, {len(cells)} cells; the longest stall, in seconds:", ""]
    lines += [*_markdown(*summary(cells)), "", *_markdown(HEADINGS, [cell.figures() for cell in cells])]
    (folder / "pressure.md").write_text("\n".join(lines) + "\n")


def _markdown(headings: Sequence[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (headings, ["---:"] * len(headings), *rows)]


def read_results(folder: Path) -> list[Cell]:
    """What `write_results` left; none when it has not been there."""
    try:
        rows = json.loads((folder / "pressure.json").read_text())["cells"]
    except FileNotFoundError:
        return []
    return [Cell(**{name: value for name, value in row.items() if name != "verdict"}) for row in rows]
