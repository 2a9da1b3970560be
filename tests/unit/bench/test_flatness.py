"""The soak's rule: what is flat, what grows, and when nothing was shown."""

import random

import pytest

from zcache.bench.soak.flatness import trend

SECONDS = [10.0 * n for n in range(1, 361)]  # an hour


def test_a_steady_leak_grows_however_noisy(rng: random.Random) -> None:
    values = [50_000 + 2000 * at / 3600 + rng.gauss(0, 100) for at in SECONDS]
    line = trend(SECONDS, values, limit=1024)
    assert line.verdict == "grows"
    assert line.slope == pytest.approx(2000, abs=200)


def test_noise_without_a_trend_is_flat(rng: random.Random) -> None:
    assert trend(SECONDS, [50_000 + rng.gauss(0, 100) for _ in SECONDS], limit=1024).verdict == "flat"


def test_what_never_moves_is_flat() -> None:
    line = trend(SECONDS, [7.0] * len(SECONDS), limit=1)
    assert (line.verdict, line.slope, line.noise) == ("flat", 0, 0)


def test_growth_while_warming_up_does_not_count() -> None:
    values = [min(at, 700) for at in SECONDS]  # all of it in the first fifth
    assert trend(SECONDS, values, limit=1).verdict == "flat"


def test_a_minute_of_noise_shows_nothing() -> None:
    saw = [1000.0 * (n * 7 % 31) for n in range(60)]
    assert trend([float(n) for n in range(60)], saw, limit=10).verdict == "undecided"
