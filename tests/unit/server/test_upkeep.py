"""Upkeep: a thread that goes on, whatever becomes of one of its works."""

import errno
import threading

import pytest

from zcache.server.upkeep import Upkeep


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "no memory"), MemoryError()])
def test_a_work_that_fails_keeps_nothing_from_being_done(error: Exception) -> None:
    done_twice = threading.Event()
    done: list[int] = []

    def fail() -> None:
        raise error

    def work() -> None:
        done.append(1)
        if len(done) == 2:
            done_twice.set()

    upkeep = Upkeep("test-upkeep", fail, work, seconds=0.001)
    upkeep.start()
    assert done_twice.wait(30)
    upkeep.stop()
