"""Two trees compared, whose benchmarks say what they are told to."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from zcache.bench.against import OTHER, THIS, compare, measure
from zcache.bench.report import Report
from zcache.errors import EnvironmentProblem


def tree(folder: Path, *rounds: float) -> Path:
    """Its rounds give these figures, one after the other; `order` in the folder above says who was
    asked."""
    bench = folder / "scripts/bench"
    bench.parent.mkdir(parents=True)
    for number, figure in enumerate(rounds, 1):
        rows = [{"codec": "lz4", "pages": 100, "put us": figure}]
        (folder / f"round-{number}").write_text(json.dumps({"tables": {"cost": rows}}))
    bench.write_text(
        f"#!/bin/sh\ncd {folder}\necho {folder.name} >> ../order; echo x >> count\n"
        '[ "$1 $2 $3 $4 $5" = "store --pages 100 --rounds 1" ] || { echo "wrong words: $*"; exit 1; }\n'
        'cp "round-$(wc -l < count)" "$7/report.json"\n'
    )
    bench.chmod(0o755)
    return folder


def run(tmp_path: Path, trees: dict[str, Path], rounds: int, *words: str) -> list[dict[str, object]]:
    report = Report(tmp_path / "results", Console(quiet=True))
    return [dict(row) for row in compare(measure(report, ["store", *words], trees, rounds))]


def test_medians_of_rounds_that_take_turns(tmp_path: Path) -> None:
    trees = {OTHER: tree(tmp_path / "a", 1.0, 2.0, 9.0), THIS: tree(tmp_path / "b", 3.0, 3.0, 3.0)}
    (row,) = run(tmp_path, trees, 3, "--pages", "100")
    assert row == {
        "table": "cost",
        "row": "lz4, pages 100",
        "figure": "put us",
        OTHER: 2.0,
        THIS: 3.0,
        "more by %": 50.0,
        "spread %": 200.0,
    }, "what is the same in all rounds is no figure, and says what is measured"
    assert (tmp_path / "order").read_text().split() == ["a", "b", "b", "a", "a", "b"]


def test_a_round_that_fails_is_told_by_its_last_line(tmp_path: Path) -> None:
    trees = {OTHER: tree(tmp_path / "a", 1.0), THIS: tree(tmp_path / "b", 1.0)}
    with pytest.raises(EnvironmentProblem, match=r"/a: wrong words: store --page"):
        run(tmp_path, trees, 1, "--page")


def test_what_is_no_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"/scripts/bench: No such file or directory; give a tree of zcache's"):
        run(tmp_path, {OTHER: tmp_path, THIS: tmp_path}, 1)


def test_trees_that_measure_nothing_alike_are_told() -> None:
    with pytest.raises(EnvironmentProblem, match="no figure in common"):
        compare({OTHER: [{"a": [{"us": 1.0}]}], THIS: [{"b": [{"us": 2.0}]}]})
