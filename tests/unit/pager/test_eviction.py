"""What becomes of pages that were about to leave when something went wrong."""

import errno
import threading
from array import array

import pytest

from zcache.pager import eviction
from zcache.pager.eviction import FULL, Eviction
from zcache.pager.pages import ResidentPages
from zcache.pager.region_memory import RegionMemory
from zcache.pager.stored_pages import StoredPages


class _Failing(RegionMemory):
    def __init__(self) -> None:
        super().__init__(-1, -1, 0, 64)

    def protect_and_read(self, pages: "array[int]", out: memoryview) -> None:
        """As when the client has just gone."""
        assert len(pages) * 4096 <= len(out)
        raise OSError(errno.ESRCH, "no such process")


class _NoStore(StoredPages):
    def __init__(self) -> None:
        """Which nobody asks."""


def test_nobody_waits_for_them_for_ever() -> None:
    resident = ResidentPages(64, 16)
    resident.came(0, 32)
    made = Eviction(_Failing(), _NoStore(), resident, 8, lambda _: None)
    with pytest.raises(ProcessLookupError):
        made.evict(8)
    for page in range(32):
        resident.wait_until_left(page)
        assert resident.is_staying(page)
    assert resident.begin_to_leave_of(0, 64) == list(range(32))


def test_who_reads_that_the_store_is_full_finds_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once it is in the status, and once for as long as it lasts."""
    resident = ResidentPages(64, 16)
    resident.came(0, 32)
    made = Eviction(_Failing(), _NoStore(), resident, 8, lambda _: None)
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
