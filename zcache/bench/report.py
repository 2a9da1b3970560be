"""What a benchmark found: tables for the terminal, the same as JSON, and plots, in one folder."""

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zcache.errors import BadInput

Figure = float | int | str | None


class Report:
    """Tables are printed as they come; `save` writes `report.json`."""

    def __init__(self, folder: Path, console: Console) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--folder {folder}: {error.strerror}; give a folder that can be written") from None
        self.folder = folder
        self.console = console
        self._tables: dict[str, list[dict[str, Figure]]] = {}

    def table(self, name: str, title: str, rows: Sequence[Mapping[str, Figure]]) -> None:
        """Rows of the same columns, of which all but the texts stand to the right."""
        table = Table(box=None, title=title, title_justify="left")
        for column, figure in rows[0].items():
            table.add_column(column, justify="left" if isinstance(figure, str) else "right")
        for row in rows:
            table.add_row(*map(shown, row.values()))
        self.console.print(table, "")
        self._tables[name] = [dict(row) for row in rows]

    def bars(self, name: str, title: str, groups: Mapping[str, Mapping[str, float]], unit: str) -> None:
        """A PNG: for each group (a place on the axis) a bar for each member."""
        import matplotlib  # here: it takes a second and 60 MiB

        matplotlib.use("agg")
        from matplotlib import pyplot

        members = list(next(iter(groups.values())))
        width = 0.8 / len(members)
        figure, axis = pyplot.subplots(figsize=(1.5 + 1.6 * len(groups), 4.5), layout="constrained")
        for number, member in enumerate(members):
            places = [group + (number - (len(members) - 1) / 2) * width for group in range(len(groups))]
            axis.bar(places, [values[member] for values in groups.values()], width, label=member)
        axis.set_xticks(range(len(groups)), list(groups))
        axis.set_ylabel(unit)
        axis.set_title(title, loc="left")
        axis.legend()
        figure.savefig(self.folder / f"{name}.png", dpi=90)
        pyplot.close(figure)

    def lines(
        self,
        name: str,
        panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
        marks: Sequence[float],
    ) -> None:
        """A PNG: below one another, for each panel (its title) a line for each series, over
        seconds; `marks` are lines from top to bottom."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(
            len(panels), 1, sharex=True, figsize=(10, 2.4 * len(panels)), layout="constrained", squeeze=False
        )
        for axis, (title, series) in zip(axes[:, 0], panels.items(), strict=True):
            for label, (seconds, values) in series.items():
                axis.plot(seconds, values, linewidth=1, label=label)
            for mark in marks:
                axis.axvline(mark, linewidth=0.5, linestyle="--")
            axis.set_title(title, loc="left", fontsize=9)
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=8)
        axes[-1, 0].set_xlabel("seconds")
        figure.savefig(self.folder / f"{name}.png", dpi=90)
        pyplot.close(figure)

    def save(self) -> None:
        """Everything so far."""
        text = json.dumps({"machine": machine(), "tables": self._tables}, indent=2)
        (self.folder / "report.json").write_text(text + "\n")


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a share of the median; 0 of a single value."""
    median = statistics.median(values)
    if len(values) < 2 or not median:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4)
    return (third - first) / 2 / abs(median)


def shown(figure: Figure) -> str:
    """Three digits that count, or the whole number."""
    if figure is None:
        return "-"
    if isinstance(figure, float):
        return f"{figure:.3g}" if abs(figure) < 1000 else f"{figure:,.0f}"
    return f"{figure:,}" if isinstance(figure, int) else figure


def machine() -> dict[str, Any]:
    """On what, and when."""
    models = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _cpu_lines() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()
