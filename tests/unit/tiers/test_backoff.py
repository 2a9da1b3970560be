"""When something that fails is tried again, and who waits for that. No time passes but the clock's
own."""

import errno

import pytest

from tests.support.clock import FakeClock
from zcache.tiers.backoff import FIRST_REST_SECONDS, LAST_REST_SECONDS, PATIENCE_SECONDS, Backoff
from zcache.tiers.health import describe


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backoff(clock: FakeClock) -> Backoff:
    return Backoff(clock)


def test_without_a_failure_there_is_nothing_to_wait_for(backoff: Backoff) -> None:
    assert backoff.begin_try() and backoff.begin_try()
    assert backoff.rest_seconds() == backoff.trouble_seconds() == 0


def test_a_trouble_is_seen_to_last_from_its_first_failure_to_the_last(backoff: Backoff, clock: FakeClock) -> None:
    assert backoff.seen_seconds() == 0
    backoff.failed("EIO")
    clock.seconds += 60.0
    assert backoff.seen_seconds() == 0 and backoff.trouble_seconds() == 60.0
    backoff.failed("EIO")
    assert backoff.seen_seconds() == 60.0
    backoff.succeeded()
    assert backoff.seen_seconds() == 0


def test_rests_double_from_the_first_to_the_last(backoff: Backoff, clock: FakeClock) -> None:
    rests = []
    for _ in range(100):
        backoff.failed("EIO")
        rests.append(backoff.rest_seconds())
        clock.seconds += rests[-1] + 1e-6
        assert backoff.begin_try()
    assert rests[:6] == pytest.approx([FIRST_REST_SECONDS * 2**n for n in range(6)], abs=1e-6)
    assert rests[6:] == pytest.approx([LAST_REST_SECONDS] * 94, abs=1e-6)


def test_one_at_a_time_tries_and_one_that_never_says_how_it_ended_is_not_waited_for(
    backoff: Backoff, clock: FakeClock
) -> None:
    backoff.failed("EIO")
    assert not backoff.begin_try()
    clock.seconds += backoff.rest_seconds() + 1e-6
    assert backoff.begin_try() and not backoff.begin_try()
    clock.seconds += backoff.rest_seconds() + 1e-6
    assert backoff.begin_try()


def test_a_success_ends_the_trouble_and_the_next_one_begins_anew(backoff: Backoff, clock: FakeClock) -> None:
    for _ in range(10):
        backoff.failed("EIO")
    backoff.succeeded()
    assert backoff.begin_try() and backoff.rest_seconds() == 0
    clock.seconds += 100
    backoff.failed("EIO")
    assert backoff.rest_seconds() == pytest.approx(FIRST_REST_SECONDS)
    assert backoff.patience_seconds() == PATIENCE_SECONDS


def test_patience_is_counted_from_the_first_failure(backoff: Backoff, clock: FakeClock) -> None:
    backoff.failed("EIO")
    clock.seconds += 0.75
    backoff.failed("ENOSPC")
    assert backoff.patience_seconds() == PATIENCE_SECONDS - 0.75 and backoff.last_error == "ENOSPC"
    clock.seconds += 1.5
    assert backoff.patience_seconds() == 0 and backoff.trouble_seconds() == 2.25


def test_a_try_that_began_in_time_is_waited_for_and_one_that_began_later_is_not(
    backoff: Backoff, clock: FakeClock
) -> None:
    backoff.failed("EIO")
    clock.seconds += PATIENCE_SECONDS - 0.1
    assert backoff.begin_try()
    clock.seconds += 10
    assert backoff.patience_seconds() == FIRST_REST_SECONDS
    backoff.failed("EIO")
    assert backoff.patience_seconds() == 0
    clock.seconds += 10
    assert backoff.begin_try() and backoff.patience_seconds() == 0


def test_errors_are_named_as_a_person_would_look_them_up() -> None:
    assert describe(OSError(errno.ENOSPC, "No space left on device")) == "ENOSPC: No space left on device"
    assert describe(MemoryError()) == "MemoryError: "
