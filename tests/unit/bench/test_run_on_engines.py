"""`scripts/run --remote`: what a guest has the host do, and what a run has to show to be a
success."""

from pathlib import Path
from typing import Any

import pytest

from zcache.bench.run import on_engines
from zcache.bench.run.__main__ import parameters
from zcache.bench.run.orders import order, taking_orders
from zcache.bench.run.whereabouts import Whereabouts, sample_of

STATUS: dict[str, Any] = {
    "frame_bytes": 65536,
    "resident_frames": 64,
    "clean_frames": 16,
    "remote_frames": 32,
    "backing_frames": 8,
    "remote_peers": [{"frames": 32, "is_up": False}, {"frames": 30, "is_up": True}],
    "remoted_frames": 40,
    "remote_gets": 4,
    "remote_lost_frames": 0,
}
PLACES: dict[str, Any] = {"killed_at_seconds": 45.0, "failure": None, "samples": []}


def test_an_order_is_carried_out_before_it_is_answered() -> None:
    done: list[str] = []
    with taking_orders(done.append) as port:
        for words in ("kill 0", "pause 1"):
            order(port, words, "127.0.0.1")
            assert done[-1] == words


def test_an_order_that_fails_is_told_to_who_gave_it() -> None:
    def refuse(words: str) -> None:
        raise ValueError(f"not {words}")

    with taking_orders(refuse) as port:
        for _ in range(2):  # the next one is heard
            with pytest.raises(OSError, match="the host did not 'dance': ValueError: not dance"):
                order(port, "dance", "127.0.0.1")


def test_frames_in_ram_and_below_count_as_below() -> None:
    assert sample_of(STATUS) == {"RAM": 3.0, "engines": 2.0, "disk": 0.5, "engine 0": 2.0, "engine 1": 1.88}


def test_a_run_with_nothing_to_complain_of() -> None:
    assert on_engines.failures({"status": STATUS, "whereabouts": PLACES}) == []


@pytest.mark.parametrize(
    ("status", "places", "words"),
    [
        ({}, {"killed_at_seconds": None}, "no engine was killed: none held a frame in time"),
        ({}, {"killed_at_seconds": None, "failure": "no answer"}, "no engine was killed: no answer"),
        ({"remote_peers": [{"is_up": True}]}, {}, "the server has not noticed that an engine was killed"),
        ({"remote_gets": 0}, {}, "remote_gets is 0: too little load"),
        ({"remote_lost_frames": 1}, {}, "remote_lost_frames is 1"),
    ],
)
def test_what_keeps_a_run_from_being_a_success(status: dict[str, Any], places: dict[str, Any], words: str) -> None:
    assert on_engines.failures({"status": STATUS | status, "whereabouts": PLACES | places}) == [words]


def test_a_parameter_that_is_given_takes_the_usual_ones_place() -> None:
    words = parameters(["budget=1G", "codec=zstd"], is_remote=True)
    assert [word for word in words if word.startswith(("budget", "codec", "remote"))] == [
        "remote_budget=96M",
        "budget=1G",
        "codec=zstd",
    ]
    assert "budget=64M" in parameters([], is_remote=True) and "budget=160M" in parameters([])


def test_the_plot_is_made(tmp_path: Path) -> None:
    samples = [{"seconds": n, **sample_of(STATUS)} for n in range(3)]
    path = tmp_path / "plot.png"
    assert str(path) in on_engines.draw({"whereabouts": PLACES | {"samples": samples}}, path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("seconds", "frames", "is_time"),
    [(44.0, 1000, False), (46.0, 255, False), (46.0, 256, True), (68.0, 0, False), (68.0, 1, True)],
)
def test_an_engine_is_killed_half_way_and_once_it_holds_enough(seconds: float, frames: int, is_time: bool) -> None:
    places = Whereabouts(Path("control"), 0, 45.0)
    assert places.is_time(seconds, {"remote_frames": frames, "frame_bytes": 65536}) is is_time
