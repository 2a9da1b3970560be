"""What people read of a server's answers."""

from typing import cast

import pytest

from tests.support.stores import new_object, put, settings_of, small_store
from zcache.client.tables import print_audit, print_settings, print_status
from zcache.control.answers import Audit, SettingsNow, Status
from zcache.control.status import gather_status
from zcache.sizes import human
from zcache.store.store import Store


@pytest.fixture
def store() -> Store:
    return small_store(budget_frames=16, below_frames=16)


def status_of(store: Store, **more: object) -> Status:
    status = gather_status(store, new_object(store, 16), {"memory_lock": True, "oom_score": False}, 3, ["it is bad"])
    return cast(Status, {**status, **more})


def test_the_table_shows_every_figure_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = gather_status(store, new_object(store, 16), {})
    for name, value in status.items():
        if type(value) is int:
            status[name] = 123456789012
    monkeypatch.setenv("COLUMNS", "80")
    print_status(cast(Status, status))
    said = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in said and "115.0G" in said


def test_a_server_answers_with_all_that_is_printed(store: Store) -> None:
    """The shapes are of the server's answers, which it makes of dictionaries of counters."""
    assert Status.__required_keys__ <= status_of(store).keys()
    assert SettingsNow.__required_keys__ == settings_of(store).get().keys()


def test_all_that_can_be_said_is_said(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    put(store, new_object(store, 16), 0, b"x" * 2048 + bytes(2048))
    decision = {"seconds": 0.0, "before_bytes": 1 << 20, "after_bytes": 3 << 19, "why": "it is time"}
    export = {"size_bytes": 1 << 30, "read_only": True, "gets": 8, "misses": 2, "file_reads": 5}
    status = status_of(
        store,
        backing="/x/[swap]",
        backing_goes_with_swap=True,
        recompress="zstd",
        recompressed_pages=7,
        recompressed_saved_bytes=700,
        budget_min_bytes=1 << 20,
        budget_max_bytes=1 << 33,
        budget_decisions=[decision] * 5,
        clean_exports=[{"name": "a", **export}, {"name": "b", **export, "read_only": False, "gets": 0, "misses": 0}],
        page_loop="python",
        failed_puts=3,
        slow_reads=8,
        swap_areas=[
            {"path": "/dev/nbd0", "type": "partition", "size_bytes": 1 << 30, "used_bytes": 1 << 26, "priority": -2}
        ],
        zswap=True,
    )
    print_status(status)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:6] == ["DISKSIZE", "CODEC", "ALLOC", "DATA", "COMPR", "RATIO"]
    assert lines[1].split()[:4] == ["64.0K", "lz4", "zbud", "4.0K"]
    assert lines[2:9] == [
        "state: DEGRADED",
        "  it is bad",
        "backing: /x/[swap] (swap-up has made it, swap-down removes it)",
        "page loop: in Python, which takes more CPU",
        "server number 3 of this swap; what it counts, it counts from its start",
        "recompressed with zstd: 7 pages, 700B saved",
        "budget: 64.0K now, 1.0M to 8.0G",
    ]
    assert [line[11:] for line in lines[9:12]] == ["1.0M to 1.5M: it is time"] * 3
    assert lines[12:] == [
        "clean export a: 1.0G, read-only; 6 of 8 pages from RAM (75%), 5 reads of the file",
        "clean export b: 1.0G, read-write; 0 of 0 pages from RAM, 5 reads of the file",
        "since the start: 3 failed puts, 8 slow reads",
        "not protected: oom_score",
        "all swap, as the kernel fills it: zswap, and then",
        "NAME       TYPE       SIZE   USED  PRIO",
        "/dev/nbd0  partition  1.0G  64.0M    -2",
    ]


def test_settings_are_printed_as_they_are_set(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    settings = cast(SettingsNow, {**settings_of(store).get(), "budget_min_bytes": 1 << 20, "budget_max_bytes": 3 << 20})
    print_settings(settings)
    assert capsys.readouterr().out.splitlines()[0] == "budget=1.0M..3.0M"
    print_settings(cast(SettingsNow, {**settings, "budget_max_bytes": 1 << 20}))
    assert capsys.readouterr().out.splitlines()[0] == "budget=1.0M"


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        ({"balanced": True, "stored_pages": 4, "lost_pages": 1}, "balanced: 4 pages stored, 1 lost\n"),
        (
            {"balanced": True, "stored_pages": 4, "lost_pages": 1, "reasons": ["the disk is dead"]},
            "balanced: 4 pages stored, 1 lost\nbut the disk is dead\n",
        ),
        ({"balanced": False, "imbalance": "frame 3"}, "NOT balanced: frame 3\n"),
    ],
)
def test_an_audit(audit: Audit, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_audit(audit)
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("size_bytes", "said"), [(0, "0B"), (1023, "1023B"), (1024, "1.0K"), (1 << 30, "1.0G"), (1 << 50, "1024.0T")]
)
def test_sizes(size_bytes: int, said: str) -> None:
    assert human(size_bytes) == said
