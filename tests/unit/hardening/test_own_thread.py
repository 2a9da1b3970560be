"""A thread whose start fails, rather than hangs. Each in a process of its own: what is taken away
is the process's."""

import subprocess
import sys

PREPARE = """
import _thread, sys, threading, time
sys.unraisablehook = lambda caught: None
from zcache.errors import EnvironmentProblem
from zcache.hardening import own_thread
from zcache.hardening.own_thread import OwnThread
"""

#: As CPython's own when it finds no memory for the frames of a new thread: that ends before a line
#: of ours runs.
NO_FRAMES = """
begin_really = _thread.start_new_thread

def die_at_once(function, arguments):
    return begin_really(lambda: 1 / 0, ())

_thread.start_new_thread = die_at_once
begin = time.monotonic()
try:
    OwnThread("zcache-none", print).start()
except EnvironmentProblem as problem:
    assert "the thread zcache-none did not come to run" in str(problem), problem
    assert time.monotonic() - begin < 5, "it is known to be gone"
    sys.exit(7)
"""

#: Short of memory, as a successor is while nobody serves: it runs after half a minute.
LATE = """
import types

begin_really, go_on, looks = _thread.start_new_thread, threading.Event(), []

def begin_late(function, arguments):
    return begin_really(lambda: (go_on.wait(), function()), ())

def monotonic():
    looks.append(10.0)
    if len(looks) > 3:
        go_on.set()
    return sum(looks[:4])

_thread.start_new_thread = begin_late
own_thread.time = types.SimpleNamespace(monotonic=monotonic)
thread = OwnThread("zcache-late", lambda: None)
thread.start()
thread.join()
sys.exit(7)
"""

#: For a while, for what it does.
NO_MEMORY = """
done = []

def work():
    done.append(1)
    if len(done) < 3:
        raise MemoryError

once, again = OwnThread("zcache-once", work), OwnThread("zcache-again", work, goes_on=True)
once.start()
once.join()
assert len(done) == 1
again.start()
again.join()
assert len(done) == 3
sys.exit(7)
"""

REFUSED = """
def refuse(function, arguments):
    raise RuntimeError("can't start new thread")

_thread.start_new_thread = refuse
try:
    OwnThread("zcache-none", print).start()
except EnvironmentProblem as problem:
    assert "ulimit -u" in str(problem), problem
    sys.exit(7)
"""

WORKS = """
go_on, names = threading.Event(), []

def work():
    names.append(open("/proc/thread-self/comm").read())
    go_on.wait()

thread = OwnThread("zcache-some", work)
thread.join()
assert not thread.is_alive(), "not started"
thread.start()
assert thread.is_alive()
thread.join(timeout=0.05)
assert thread.is_alive()
go_on.set()
thread.join()
assert not thread.is_alive()
assert names == ["zcache-some\\n"], names
sys.exit(7)
"""

UNSEEN = """
import os
list_really, calls = os.listdir, []

def list_later(path):
    calls.append(path)
    if len(calls) == 1:
        raise OSError(24, "Too many open files")
    return list_really(path)

os.listdir = list_later
begin = time.monotonic()
own_thread.try_threads(3)
assert len(calls) > 1
assert time.monotonic() - begin < 5, "they are known to have ended"
sys.exit(7)
"""


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 7, done.stderr


def test_one_that_ends_before_it_runs_is_no_wait_without_end() -> None:
    run(NO_FRAMES)


def test_a_trial_ends_with_its_threads_even_if_it_could_not_see_who_was_there_before() -> None:
    run(UNSEEN)


def test_one_that_has_to_wait_for_memory_is_waited_for() -> None:
    run(LATE)


def test_one_that_the_system_refuses_says_what_stands_against_it() -> None:
    run(REFUSED)


def test_work_that_goes_on_is_begun_again_when_there_was_no_memory_for_it() -> None:
    run(NO_MEMORY)


def test_one_that_runs_has_its_name_and_is_waited_for() -> None:
    run(WORKS)
