"""Every test runs with a seed of its own that a failure prints."""

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# Random tests are seeded anew at each run; a failing example is printed with the blob that replays
# it.
settings.register_profile("zcache", deadline=None, print_blob=True)
settings.load_profile("zcache")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> Iterator[int]:
    """ZCACHE_SEED, or a new one; shown with the failure of any test that uses it."""
    chosen = int(os.environ.get("ZCACHE_SEED") or random.SystemRandom().getrandbits(32))
    request.node.user_properties.append(("seed", chosen))
    yield chosen


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    for name, value in item.user_properties:
        if name == "seed" and report.failed:
            report.sections.append(("seed", f"replay with ZCACHE_SEED={value}"))
    return report
