"""A hundred thousand rude clients of a real control socket; after them it is as it was."""

import gc
import random
import threading
from pathlib import Path

import pytest

from tests.support.control_clients import RudeClients
from tests.support.stores import new_object, put, settings_of, small_store
from zcache.control.ask import ask
from zcache.control.listener import MAX_CONNECTIONS, ControlSocket
from zcache.hardening.protections import resident_and_locked_bytes

CLIENTS = 100_000
WARM_UP_CLIENTS = 5_000

#: How much a process may grow that a hundred thousand requests went through: ten bytes each.
GROWTH_BYTES = 1 << 20


@pytest.mark.slow
@pytest.mark.thorough
def test_a_hundred_thousand_rude_clients(rng: random.Random, tmp_path: Path) -> None:
    store = small_store(budget_frames=16, below_frames=16)
    pages = new_object(store, 16)
    put(store, pages, 0, bytes(4096), b"x" * 2048 + bytes(2048))
    path = tmp_path / "control"
    control = ControlSocket(path)
    control.start(store, store.statistics.as_dict, settings_of(store))  # without what takes the kernel long to tell
    clients = RudeClients(path, rng)
    clients.throw(WARM_UP_CLIENTS)
    clients.close()
    before = ask(path, "status")
    figures = resources()
    clients.throw(CLIENTS)
    clients.close()
    assert clients.refused > CLIENTS // 4
    assert ask(path, "status") == before
    assert ask(path, "check")["balanced"] is True
    threads, descriptors, objects, rss_bytes = resources()
    assert threads == figures[0]
    assert descriptors <= figures[1] + MAX_CONNECTIONS  # those that it has not looked at yet
    assert objects < figures[2] + 1000
    assert rss_bytes < figures[3] + GROWTH_BYTES
    control.close()


def resources() -> tuple[int, int, int, int]:
    """Threads, descriptors, Python objects, bytes."""
    gc.collect()
    return (
        threading.active_count(),
        len(list(Path("/proc/self/fd").iterdir())),
        len(gc.get_objects()),
        resident_and_locked_bytes()[0],
    )
