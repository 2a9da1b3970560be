"""Every test runs with a seed of its own that a failure prints; and has its folder's marker, and
limit of time."""

import os
import random
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings

# Random tests are seeded anew at each run; a failing example is printed with the blob that replays
# it.
settings.register_profile("zcache", deadline=None, print_blob=True)
settings.load_profile("zcache")

#: Of folders that have a marker of their name: how many seconds a test may take. A guest is given
#: its own limit (`VmConfig.timeout_seconds`), which says more: so that comes first.
LIMITS_SECONDS: Final = {"nbd": 900, "vm": 7200}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in LIMITS_SECONDS:
            item.add_marker(folder)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(LIMITS_SECONDS[folder]))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """ZCACHE_SEED, or a new one; shown with the failure of any test that uses it."""
    chosen = int(os.environ.get("ZCACHE_SEED") or random.SystemRandom().getrandbits(32))
    request.node.user_properties.append(("seed", chosen))
    return chosen


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
