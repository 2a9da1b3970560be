"""What is said of a region whose pages cannot leave."""

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zcache.pager import eviction
from zcache.pager.eviction import FULL, Eviction


def test_who_reads_that_the_store_is_full_finds_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once it is in the status, and once for as long as it lasts."""
    lock = threading.Lock()
    resident = SimpleNamespace(many=threading.Condition(lock), changed=threading.Condition(lock), count=2, high=1)
    nobody = cast(Any, None)
    made = Eviction(nobody, nobody, cast(Any, resident), 1, nobody)
    tries = iter([False, False, True, False])
    said: list[tuple[str, bool]] = []
    is_over = threading.Event()

    def evict(_most: int) -> bool:
        found = next(tries, None)
        if found is None:
            is_over.set()
        return bool(found)

    monkeypatch.setattr(made, "evict", evict)
    monkeypatch.setattr(eviction, "REST_SECONDS", 0.0)
    monkeypatch.setattr(eviction, "say", lambda line: said.append((line, made.is_full)))
    made.start()
    assert is_over.wait(20)
    made.close()
    assert said == [(f"zcache: {FULL}", True)] * 2
