"""A region's pages in a store that it may share with others: a run of those of one tmem object."""

from zcache.pages.page_table import BLOCK_SHIFT
from zcache.pages.tmem import TmemObject
from zcache.store.store import Store


class StoredPages:
    """`page_count` pages, from `begin` on in the object; here they are counted from 0."""

    def __init__(self, store: Store, thing: TmemObject, begin: int, page_count: int) -> None:
        self._store, self._thing, self._begin = store, thing, begin
        self.page_count = page_count

    def put(self, first: int, data: memoryview | bytes) -> None:
        """Whole pages. Raises `StoreFull`: then some of them are lost, until they are flushed."""
        self._store.put(self._thing, self._begin + first, memoryview(data))

    def get(self, first: int, out: memoryview) -> None:
        """Whole pages; zeros where there are none. Raises `PageLost` or `PageDamaged`."""
        self._store.get(self._thing, self._begin + first, out)

    def flush(self, first: int, count: int) -> None:
        """Have none of them any more."""
        self._store.flush(self._thing, self._begin + first, count)

    def holds(self, page: int) -> bool:
        """Whether it has an entry."""
        table, index = self._thing.table, self._begin + page
        return bool(table.touched[index >> BLOCK_SHIFT] and table.entries[index])

    def count(self) -> int:
        """How many have an entry. It looks at all: some 20 ms for 4 GiB of pages."""
        table, count = self._thing.table, 0
        for start, stop in table.touched_runs(self._begin, self._begin + self.page_count):
            entries = table.entries[start:stop].tolist()
            count += len(entries) - entries.count(0)
        return count
