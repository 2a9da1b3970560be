"""A share of what `python -m tests.property.soak` does for as long as it is asked to; scripts/test
runs a million."""

import random

import pytest

from tests.property.remote_world import RemoteWorld
from tests.property.soak import WORLD_OPERATIONS, run_worlds
from tests.property.world import World


@pytest.mark.slow
def test_operations_in_small_worlds(seed: int) -> None:
    for _, found in run_worlds(seed, 100_000, jobs=2):
        assert not found, found


@pytest.mark.slow
def test_operations_in_worlds_with_engines_below(seed: int) -> None:
    for _, found in run_worlds(seed, 100_000, jobs=2, is_remote_only=True):
        assert not found, found


def test_a_few_operations_in_worlds_with_engines_below(rng: random.Random) -> None:
    for _ in range(8):
        RemoteWorld(rng.getrandbits(48)).run(500)


@pytest.mark.parametrize("kind", [World, RemoteWorld])
def test_a_world_with_one_thread_repeats_exactly(rng: random.Random, kind: type[World]) -> None:
    """Or a failure could not be replayed: the same operations, the same faults, the same figures at
    the end."""
    ends = []
    world_seed = next(seed for seed in iter(lambda: rng.getrandbits(48), None) if _is_eventful(kind(seed)))
    for _ in range(2):
        world = kind(world_seed)
        world.run(WORLD_OPERATIONS)
        assert world.tiers
        ends.append((world.log(), world.describe(), world.store.statistics.as_dict()))
    assert ends[0] == ends[1]


def _is_eventful(world: World) -> bool:
    world.close()
    return world.threads == 1 and world.has_faults and world.busy_share > 0 and world.death_every > 0
