"""Lines that come again are counted: on a clock that the tests move."""

from tests.support.clock import FakeClock
from zcache.hardening.repeats import MAX_KINDS, MAX_LINE, REST_SECONDS, Repeats

HOUR_SECONDS = 3600


def number_in(count: str) -> int:
    """How often the line has come, of "the same again, 5 times in 10 s: …"."""
    word = count.removeprefix("zcache: the same again, ").split()[0]
    return 1 if word == "once" else int(word.replace(",", ""))


def test_the_first_of_a_kind_is_said_at_once_and_the_rest_counted() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    assert repeats.add("zcache: a write to 'a' failed, 5") == "zcache: a write to 'a' failed, 5"
    for number in range(3156):
        assert repeats.add(f"zcache: a write to 'b' failed, {number}") == ""
    assert repeats.due() == []
    clock.seconds += REST_SECONDS[0]
    assert repeats.due() == ["zcache: the same again, 3,156 times in 10 s: a write to 'b' failed, 3155"]
    assert repeats.due() == [] and repeats.seconds_until_due() is None


def test_what_goes_on_for_a_day_is_said_once_an_hour() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    lines = said = 0
    while clock.seconds < 1000 + 24 * HOUR_SECONDS:
        lines += bool(repeats.add("nbdkit: error: no"))
        counts = repeats.due()
        lines += len(counts)
        said += sum(map(number_in, counts))
        clock.seconds += 10
    (rest,) = repeats.due(at_the_end=True)
    assert lines <= 24 + len(REST_SECONDS)
    assert said + number_in(rest) + 1 == 24 * HOUR_SECONDS // 10


def test_whoever_waits_knows_how_long() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    assert repeats.seconds_until_due() is None
    repeats.add("a")
    assert repeats.seconds_until_due() is None
    repeats.add("a")
    clock.seconds += 4
    assert repeats.seconds_until_due() == REST_SECONDS[0] - 4
    clock.seconds += HOUR_SECONDS
    assert repeats.seconds_until_due() == 0.0


def test_a_kind_that_has_not_come_for_an_hour_is_new_again() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    repeats.add("a")
    clock.seconds += HOUR_SECONDS / 2
    assert repeats.add("a") == ""
    assert repeats.due() == ["zcache: the same again, once in 1800 s: a"]
    clock.seconds += HOUR_SECONDS + 1
    assert repeats.add("a") == "a"


def test_kinds_that_somebody_makes_up_are_one_when_there_are_many() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    words = ["".join(chr(97 + number // 26**place % 26) for place in range(3)) for number in range(5000)]
    said = [line for line in map(repeats.add, words) if line]
    assert said == words[: MAX_KINDS + 1]
    clock.seconds += REST_SECONDS[0]
    (count,) = repeats.due()
    assert count == f"zcache: the same again, 4,935 times in 10 s (or of other kinds), the last: {words[-1]}"
    clock.seconds += HOUR_SECONDS + 1
    assert repeats.add("something else") == "something else"


def test_a_count_is_never_counted_and_a_line_has_a_length() -> None:
    repeats = Repeats(FakeClock())
    count = "zcache: the same again, 5 times in 10 s: x"
    assert [repeats.add(count), repeats.add(count)] == [count, count]
    assert len(repeats.add("x" * 10_000)) == MAX_LINE
