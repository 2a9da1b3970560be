"""A thread of ours, whose start fails rather than hangs.

`threading.Thread.start` waits until the new thread says that it runs. One that finds no memory
before it comes to that (CPython maps a stack of frames for it; under strict overcommit or a limit
that is refused) ends without a word, and whoever started it waits for ever (seen: the server under
strict overcommit). Here the wait ends when the thread does, and has a bound.
"""

import _thread
import contextlib
import os
import time
from collections.abc import Callable
from typing import Final

from zcache.errors import EnvironmentProblem
from zcache.hardening.limits import in_words
from zcache.hardening.threads import begin_own_thread

#: For one that is there, and does not run yet: a successor, while nobody serves, may wait that long
#: for the memory of its stack. Less than a step may take (60 s), so that it says so itself. One
#: that has ended is seen at once.
BEGIN_SECONDS: Final = 45.0
#: Between two looks whether it is still there.
_LOOK_SECONDS: Final = 0.1

#: Before work is begun again for which there was no memory.
_REST_SECONDS: Final = 0.5

_TASKS: Final = "/proc/self/task"


class OwnThread:
    """Runs `work`, under that name for the kernel; a daemon. Work that is for as long as the server
    lives (`goes_on`) is begun again when there was no memory for a part of it."""

    def __init__(self, name: str, work: Callable[[], None], *, goes_on: bool = False) -> None:
        self._name = name
        self._work = work
        self._goes_on = goes_on
        self._begun = _thread.allocate_lock()
        self._running = _thread.allocate_lock()  # held by nobody in particular, while it runs

    def start(self) -> None:
        """Raises `EnvironmentProblem` if there is no memory for one, or a limit stands against
        it."""
        self._begun.acquire()
        self._running.acquire()
        before = _tasks()
        deadline_seconds = time.monotonic() + BEGIN_SECONDS
        try:
            _thread.start_new_thread(self._run, ())
        except (RuntimeError, MemoryError) as error:
            self._running.release()
            raise EnvironmentProblem(f"the thread {self._name} could not be started: {in_words(error)}") from None
        while not self._begun.acquire(timeout=_LOOK_SECONDS):
            now = _tasks()
            is_gone = bool(now) and now <= before
            if self._begun.acquire(timeout=0):  # it ran, and has ended, between the two looks
                break
            if is_gone or time.monotonic() > deadline_seconds:
                self._running.release()
                raise EnvironmentProblem(f"the thread {self._name} did not come to run: {in_words(MemoryError())}")

    def is_alive(self) -> bool:
        """Whether it was started, and has not ended."""
        return self._running.locked()

    def join(self, timeout: float = -1) -> None:
        """Wait for its end, for so many seconds at most; not at all if it never ran."""
        if self._running.acquire(timeout=timeout):
            self._running.release()

    def _run(self) -> None:
        self._begun.release()
        try:
            begin_own_thread(self._name)
            while True:
                try:
                    self._work()
                    break
                except MemoryError:
                    if not self._goes_on:
                        raise
                time.sleep(_REST_SECONDS)
        finally:
            self._work = _nothing  # which may refer to whoever has this
            with contextlib.suppress(RuntimeError):  # it was given up, too late to begin
                self._running.release()


def _nothing() -> None:
    pass


def try_threads(count: int) -> None:
    """Start so many, all there at once, which end again: raises `EnvironmentProblem` if there
    cannot be so many."""
    before = _tasks() or {str(os.getpid())}
    gate = _thread.allocate_lock()

    def wait() -> None:
        with gate:
            pass

    started = [OwnThread("zcache-trial", wait) for _ in range(count)]
    with gate:
        for thread in started:
            thread.start()
    for thread in started:
        thread.join()
    deadline_seconds = time.monotonic() + BEGIN_SECONDS
    while _tasks() - before and time.monotonic() < deadline_seconds:  # what comes next wants to be the only thread
        time.sleep(0.001)


def _tasks() -> set[str]:
    """The threads that there are; none if that cannot be read now."""
    try:
        return set(os.listdir(_TASKS))  # noqa: PTH208 (pathlib would intern the names)
    except OSError:
        return set()
