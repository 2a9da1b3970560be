"""`scripts/bench store|peers --against PATH [options]`: this tree beside another, in one run.

One round of the benchmark in each tree, by its own `scripts/bench`, and again, as often as
`--rounds` says (10); which tree is first takes turns, because the machine is never quiet. For each
figure: the median of each tree, and by how much this tree's is more. `spread` is half the distance
between the quartiles, as a share of the median, of whichever tree has more: a difference that is
smaller than that says nothing, and nor does any after a round or two. Each round of `store` starts
programs anew to have heaps of, so its pages, and what depends on them alone, differ a little, too.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from zcache.bench.report import Figure, Report, spread
from zcache.bench.served import REPOSITORY
from zcache.errors import EnvironmentProblem
from zcache.testvm.arguments import whole_number

COMPARABLE: Final = ("peers", "store")
#: For the help of these.
MENTION: Final = "With --against PATH: this tree beside another, in one run (--against PATH --help)."
OTHER: Final = "other tree"
THIS: Final = "this tree"

#: A figure: its table, the row (its number, and its words), and the column.
Key = tuple[str, int, str, str]
#: What a round found: rows, by the table's name.
Tables = dict[str, list[dict[str, Any]]]


def main(name: str, words: Sequence[str]) -> int:
    """Prints the table; exit status 0. Raises `EnvironmentProblem` if a round fails."""
    parser = argparse.ArgumentParser(
        prog=f"scripts/bench {name}",
        description=(__doc__ or "").partition("\n\n")[2],
        epilog="Other options go to the benchmark itself.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--against", type=Path, required=True, metavar="PATH", help="the other tree, which is set up if it was not"
    )
    parser.add_argument("--rounds", type=whole_number(), default=10, help="of each tree (%(default)s)")
    parser.add_argument("--folder", type=Path, help="for the results (default: a new temporary one)")
    arguments, rest = parser.parse_known_args(words)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-"))
    report = Report(folder, Console(width=180))
    trees = {OTHER: arguments.against, THIS: REPOSITORY}
    rounds = measure(report, [name, *rest], trees, arguments.rounds)
    report.table("against", f"{name}: medians of {arguments.rounds} rounds of each tree, turn about", compare(rounds))
    report.save()
    report.console.print(f"report.json: {folder}")
    return 0


def measure(report: Report, words: Sequence[str], trees: dict[str, Path], rounds: int) -> dict[str, list[Tables]]:
    """The tables of each round, by tree."""
    found: dict[str, list[Tables]] = {name: [] for name in trees}
    with report.console.status("") as status:
        for turn in range(rounds):
            for name in reversed(trees) if turn % 2 else trees:
                status.update(f"round {turn + 1} of {rounds}: {name}")
                found[name].append(_one_round(trees[name], words))
    return found


def _one_round(tree: Path, words: Sequence[str]) -> Tables:
    with tempfile.TemporaryDirectory(prefix="zcache-round-") as folder:
        command = [str(tree / "scripts/bench"), *words, "--rounds", "1", "--folder", folder]
        try:
            _run(command)
            tables: Tables = json.loads((Path(folder) / "report.json").read_text())["tables"]
        except subprocess.CalledProcessError as error:
            last = (error.stdout.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
            raise EnvironmentProblem(f"{tree}: {last}") from None
        except OSError as error:
            raise EnvironmentProblem(f"{command[0]}: {error.strerror}; give a tree of zcache's") from None
    return tables


def _run(command: Sequence[str]) -> None:
    """Raises `CalledProcessError`. Whatever ends us ends it, and its servers, in order."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, said)


def compare(rounds: dict[str, list[Tables]]) -> list[dict[str, Figure]]:
    """A row for each figure that both trees have, and that is not always the same; those that are
    say what is measured."""
    other, this = (_by_figure(rounds[name]) for name in (OTHER, THIS))
    rows: list[dict[str, Figure]] = []
    common = {key: (before, this[key]) for key, before in other.items() if key in this}
    same: dict[tuple[str, int], str] = {}
    for key, (before, after) in common.items():
        if len({*before, *after}) == 1:
            same[key[:2]] = f"{same.get(key[:2], '')}, {key[3]} {before[0]:g}"
    for key, (before, after) in common.items():
        if len({*before, *after}) == 1:
            continue
        medians = statistics.median(before), statistics.median(after)
        rows.append(
            {
                "table": key[0],
                "row": key[2] + same.get(key[:2], ""),
                "figure": key[3],
                OTHER: float(medians[0]),
                THIS: float(medians[1]),
                "more by %": 100 * (medians[1] / medians[0] - 1) if medians[0] else None,
                "spread %": 100 * max(spread(before), spread(after)),
            }
        )
    if not rows:
        raise EnvironmentProblem("the two trees have no figure in common that was measured")
    return rows


def _by_figure(rounds: list[Tables]) -> dict[Key, list[float]]:
    """The values of each figure, one a round."""
    found: dict[Key, list[float]] = {}
    for tables in rounds:
        for table, rows in tables.items():
            for number, row in enumerate(rows):
                words = " ".join(value for value in row.values() if isinstance(value, str))
                for column, value in row.items():
                    if isinstance(value, int | float):
                        found.setdefault((table, number, words, column), []).append(value)
    return found
