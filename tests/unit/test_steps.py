"""The steps of a start, and who watches them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zcache.steps import REST_SECONDS, SECONDS_VARIABLE, STEP_SECONDS, VARIABLE, Steps, StepsWatch


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Iterator[StepsWatch]:
    made = StepsWatch(clock)
    yield made
    made.close()


@pytest.fixture
def steps(watch: StepsWatch) -> Iterator[Steps]:
    with os.fdopen(watch.writer, "wb"):
        yield Steps(watch.writer)


def test_a_step_has_a_deadline_that_progress_moves(
    watch: StepsWatch, steps: Steps, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zcache.steps.time.monotonic", clock)
    steps.begin("looking at the disk", 10)
    assert watch.look() and watch.step == "looking at the disk" and watch.pid == os.getpid()
    clock.seconds = 9
    steps.go_on()
    watch.look()
    clock.seconds = 18.9
    assert not watch.is_overdue()
    clock.seconds = 19
    assert watch.is_overdue()
    steps.begin("populating", 5)
    watch.look()
    assert not watch.is_overdue()


def test_progress_is_not_told_at_each_turn(watch: StepsWatch, steps: Steps) -> None:
    steps.begin("populating")
    for _ in range(100_000):  # more than the pipe holds
        steps.go_on()
    steps.begin("the next")
    watch.look()
    assert watch.step == "the next" and watch.saying < 2 + 60 / REST_SECONDS


def test_what_waits_for_somebody_has_no_deadline(watch: StepsWatch, steps: Steps, clock: Clock) -> None:
    steps.wait("waiting for its turn")
    watch.look()
    clock.seconds = 1e9
    assert not watch.is_overdue()
    watch.begin_anew("beginning to serve")  # it was told to
    assert not watch.is_overdue() and watch.step == "beginning to serve"
    clock.seconds = 2e9
    assert watch.is_overdue()
    steps.end()
    watch.look()
    assert watch.has_ended and not watch.is_overdue()


def test_who_watches_may_allow_more_than_usual_for_each_step(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """As swap-up does with --start-seconds; it has no effect on a step that says itself what it may
    take."""
    watch = StepsWatch(clock, step_seconds=300)
    for name, value in watch.pass_on().items():
        monkeypatch.setenv(name, value)
    assert watch.seconds == 300
    steps = Steps.from_environment()
    assert SECONDS_VARIABLE not in os.environ and steps.step_seconds == 300
    steps.begin("one")
    watch.look()
    assert watch.seconds == 300
    steps.begin("another", 10)
    watch.look()
    assert watch.seconds == 10
    watch.begin_anew("beginning to serve")
    assert watch.seconds == 300
    os.close(watch.writer)
    watch.close()


@pytest.mark.parametrize("leftover", ["", "soon", "nan", "-5"])
def test_nothing_makes_a_step_shorter_than_usual(
    watch: StepsWatch, leftover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(watch.writer))
    monkeypatch.setenv(SECONDS_VARIABLE, leftover)
    assert Steps.from_environment().step_seconds == STEP_SECONDS
    os.close(watch.writer)


def test_what_is_said_is_what_older_keepers_read() -> None:
    reader, writer = os.pipe()
    steps = Steps(writer)
    steps.begin("a step")
    steps.wait("a turn")
    assert os.read(reader, 4096).decode() == f"step {os.getpid()} 60.0 a step\nstep {os.getpid()} 0.0 a turn\n"
    os.close(reader)
    os.close(writer)


def test_one_that_never_says_anything_is_overdue_until_it_is_known_to_be_older(watch: StepsWatch, clock: Clock) -> None:
    watch.begin_anew("beginning to serve")
    assert watch.step == "starting the program"
    clock.seconds = 100
    assert watch.is_overdue()


def test_a_pipe_that_nobody_empties_holds_up_nobody(watch: StepsWatch, steps: Steps) -> None:
    for number in range(100_000):
        steps.begin(f"step {number}")
    watch.look()
    assert watch.step.startswith("step ")


def test_what_watches_a_keeper_hears_of_its_server(watch: StepsWatch, steps: Steps, clock: Clock) -> None:
    outer = StepsWatch(clock)
    with os.fdopen(outer.writer, "wb"):
        keeper = Steps(outer.writer)
        steps.begin("populating", 10)
        watch.look()
        keeper.repeat("the server", watch)
        outer.look()
        assert outer.step == "the server: populating" and outer.seconds and outer.seconds > 10, "the keeper comes first"
        said = outer.saying
        keeper.repeat("the server", watch)
        outer.look()
        assert outer.saying == said, "nothing is new"
    outer.close()


def test_a_leftover_in_the_environment_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for leftover in ("", "none", "999999"):
        monkeypatch.setenv(VARIABLE, leftover)
        Steps.from_environment().begin("anything")
        assert VARIABLE not in os.environ


#: A server's start with a guard, that comes to something: it makes a socket, a pid file, and a
#: backing.
GUARDED = """
import os, signal, socket, sys
from pathlib import Path
from zcache.server.start_guard import leave_guard
from zcache.steps import Steps

folder = Path(sys.argv[1])
leave_guard([folder / "socket"], folder / "pid")
steps = Steps.from_environment()
steps.begin("making files")
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(folder / "socket"))
listener.listen()
(folder / "pid").write_text(f"{os.getpid()}\\n")
steps.made(folder / "backing")
(folder / "backing").touch()
(folder / "other").touch()
"""


def guarded(folder: Path, program: str) -> "subprocess.CompletedProcess[str]":
    """Ends when the guard has: that holds the other end of standard error."""
    command = [sys.executable, "-c", GUARDED + program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_step_that_stands_still_with_every_lock_held_is_named_and_ended(tmp_path: Path) -> None:
    done = guarded(tmp_path, 'steps.begin("locking memory", 0.3); os.kill(os.getpid(), signal.SIGSTOP)')
    assert done.returncode == -9
    assert done.stderr == "zcache: stands still at its start, locking memory, for 0 s: ended\n"
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("program", ["os._exit(1)", "os.abort()"])
def test_what_a_start_leaves_that_fails_is_cleared_away(tmp_path: Path, program: str) -> None:
    done = guarded(tmp_path, program)
    assert done.returncode != 0 and done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_start_that_comes_to_its_end_keeps_all(tmp_path: Path) -> None:
    done = guarded(tmp_path, "steps.end(); os.close(2); os.close(1)")
    assert done.returncode == 0 and done.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backing", "other", "pid", "socket"]


def test_what_is_no_socket_or_not_this_servers_stays(tmp_path: Path) -> None:
    """`control=` may name any file, which the server refuses: the guard must not take it for a dead
    socket (it did)."""
    for name in ("socket", "pid"):
        (tmp_path / name).write_text("1\n")
    places = f"[Path({str(tmp_path / 'socket')!r})], Path({str(tmp_path / 'pid')!r})"
    program = f"from zcache.server.start_guard import *; leave_guard({places}); os._exit(1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert done.returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pid", "socket"]


def test_a_socket_on_which_another_answers_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as another:
        another.bind(str(path))
        another.listen()
        program = f"from zcache.server.start_guard import *; leave_guard([Path({str(path)!r})], None); os._exit(1)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
        assert done.returncode == 1 and path.exists()
