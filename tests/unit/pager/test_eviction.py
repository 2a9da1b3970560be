"""What becomes of pages that were about to leave when something went wrong."""

import errno
from array import array

import pytest

from zcache.pager.eviction import Eviction
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
    eviction = Eviction(_Failing(), _NoStore(), resident, 8, lambda _: None)
    with pytest.raises(ProcessLookupError):
        eviction.evict(8)
    for page in range(32):
        resident.wait_until_left(page)
        assert resident.is_staying(page)
    assert resident.begin_to_leave_of(0, 64) == list(range(32))
