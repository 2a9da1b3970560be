"""scripts/bench store and its report, on a few made-up pages: that they measure what they say."""

import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from zcache.bench.corpus import Corpus, mixed, python_heap
from zcache.bench.report import Report, shown
from zcache.bench.store.__main__ import cost, rebuild_cost
from zcache.bench.store.density import density_of, metadata_of, recompression_of
from zcache.pages.codec import parse_codec


def half_compressible(rng: random.Random, count: int) -> Corpus:
    """Two of these fill a frame."""
    return Corpus("made up", [rng.randbytes(1900) + bytes(2196) for _ in range(count)])


def test_density_is_what_the_pages_allow(rng: random.Random) -> None:
    row = density_of(half_compressible(rng, 400), parse_codec("lz4"), "zbud", seed=1)
    assert row["fresh"] == 2.0
    ratio, after = row["codec's ratio"], row["after"]
    assert isinstance(ratio, float) and isinstance(after, float)
    assert 2.0 < ratio < 2.2 and 1.5 < after <= 2.0
    assert row["fresh/codec"] == 2.0 / ratio


def test_noise_is_not_compressed(rng: random.Random) -> None:
    row = density_of(Corpus("noise", [rng.randbytes(4096) for _ in range(200)]), parse_codec("lz4"), "zbud", seed=1)
    assert row["codec's ratio"] == row["fresh"] == row["after"] == 1.0


def test_log_is_as_dense_as_the_codec_again_after_a_rest(rng: random.Random) -> None:
    row = density_of(half_compressible(rng, 4000), parse_codec("lz4"), "log", seed=1)
    ratio, after, rested = row["codec's ratio"], row["after"], row["at rest"]
    assert isinstance(ratio, float) and isinstance(after, float) and isinstance(rested, float)
    assert after < rested and rested > 0.9 * ratio


def test_recompression_gains_what_zstd_gains(rng: random.Random) -> None:
    pages = [bytes(rng.choice(b"abcdefgh") for _ in range(4096)) for _ in range(300)]
    row = recompression_of(Corpus("letters", pages), parse_codec("lz4"), parse_codec("zstd:1"))
    times = row["times"]
    assert isinstance(times, float) and times > 1.2


def test_metadata_is_at_least_the_page_table(rng: random.Random) -> None:
    row = metadata_of(half_compressible(rng, 32), parse_codec("lz4"), "log")
    size = row["bytes a page"]
    assert isinstance(size, float) and 8 <= size < 100


def test_costs_are_positive_and_their_ratio_is_theirs(rng: random.Random) -> None:
    row = cost(half_compressible(rng, 256), parse_codec("lz4"), "zbud", 8, rounds=1)
    put, codec, times = row["put us"], row["codec in us"], row["put/codec"]
    assert isinstance(put, float) and isinstance(codec, float) and 0 < codec < put and times == put / codec


def test_a_rebuild_takes_all_pages_over(rng: random.Random) -> None:
    row = rebuild_cost(half_compressible(rng, 32), parse_codec("lz4"), "zbud", 1024)
    assert row["pages"] == 1024 and isinstance(row["seconds"], float) and row["seconds"] > 0


def test_a_corpus_is_of_real_pages_and_described(rng: random.Random) -> None:
    heap = python_heap(300)
    assert len(heap.pages) == 300 and all(page.strip(b"\0") for page in heap.pages)
    assert 1.5 < heap.ratio("lz4") < heap.ratio("zstd:1") < 50
    both = mixed([heap], 200, seed=1)
    assert len(both.pages) == 200 and 0.04 < both.same_filled() < 0.2
    assert Corpus("same", [b"abcd" * 1024, bytes(4096), b"abcd" * 1024, rng.randbytes(4096)]).duplicates() == 0.25


def test_the_report_is_a_table_json_and_plots(tmp_path: Path) -> None:
    report = Report(tmp_path / "new", Console(file=(tmp_path / "said").open("w"), width=100))
    report.table("one", "a table", [{"name": "a", "figure": 1.5}, {"name": "b", "figure": None}])
    report.bars("one", "a plot", {"group": {"a": 1.5, "b": 2.0}}, "unit")
    report.save()
    report.console.file.close()
    assert (tmp_path / "new/one.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "new/report.json").read_text())
    assert saved["tables"]["one"] == [{"name": "a", "figure": 1.5}, {"name": "b", "figure": None}]
    assert saved["machine"]["cpus"] >= 1 and "a table" in (tmp_path / "said").read_text()


@pytest.mark.parametrize(
    ("figure", "text"), [(1.23456, "1.23"), (0.0123, "0.0123"), (12345.6, "12,346"), (12345, "12,345"), (None, "-")]
)
def test_figures_are_short(figure: float | int | None, text: str) -> None:
    assert shown(figure) == text
