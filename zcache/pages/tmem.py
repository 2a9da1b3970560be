"""tmem: who a page belongs to. Pools of two kinds hold objects; an object is a table of pages by
index.

Transcendent memory (Magenheimer, 2009-2012) names a page by a key of three parts: pool, object,
index. A pool is persistent or ephemeral, and that decides what a get may answer. Here an object has
a fixed number of pages and its handles lie in a flat page table; a swap device is one object of one
persistent pool.

The coherency contract, which `tests/unit/test_tmem_contract.py` holds the store to for both kinds:

- put-put-get never returns the first data, whatever becomes of the second put;
- a put over a page that exists and fails (a failed duplicate put) invalidates the page;
- after a get that failed, gets fail until the next put;
- a persistent get of a page that was put never fails; an ephemeral one may, at any time;
- flush (of a page, an object or a pool) makes every later get fail until the next put.

This module knows neither codecs nor frames: an entry is a word to it.
"""

from enum import IntEnum

from zcache.image.image import Section
from zcache.pages.entry import EMPTY, OWNER_HANDLE_BITS, OWNER_INDEX_BITS
from zcache.pages.page_table import PageTable


class Kind(IntEnum):
    """What a pool promises of its pages."""

    PERSISTENT = 0  # kept until flushed
    EPHEMERAL = 1  # may be gone at the next get


class TmemObject:
    """`page_count` pages of a pool under one object id."""

    def __init__(
        self, pool: "Pool", object_id: int, handle: int, page_count: int, section: Section | None = None
    ) -> None:
        self.pool = pool
        self.kind = pool.kind
        self.object_id = object_id
        self.page_count = page_count
        self.table = PageTable(page_count, section)
        self.owner_base = handle << OWNER_INDEX_BITS


class Pool:
    """Objects of one kind, by object id."""

    def __init__(self, pool_id: int, kind: Kind) -> None:
        self.pool_id = pool_id
        self.kind = kind
        self.objects: dict[int, TmemObject] = {}


class Tmem:
    """All pools of a store."""

    def __init__(self) -> None:
        self.pools: dict[int, Pool] = {}
        self._handles: list[TmemObject | None] = []

    def new_pool(self, kind: Kind) -> Pool:
        """A pool with an id of its own."""
        pool = Pool(max(self.pools, default=-1) + 1, kind)
        self.pools[pool.pool_id] = pool
        return pool

    def new_object(self, pool: Pool, object_id: int, page_count: int, section: Section | None = None) -> TmemObject:
        """An object of `page_count` pages: all of them absent, or what the section of an image
        holds."""
        assert object_id not in pool.objects and page_count < 1 << OWNER_INDEX_BITS
        handle = self._handles.index(None) if None in self._handles else len(self._handles)
        assert handle < 1 << OWNER_HANDLE_BITS
        thing = TmemObject(pool, object_id, handle, page_count, section)
        self._handles[handle : handle + 1] = [thing]
        pool.objects[object_id] = thing
        return thing

    def drop_object(self, thing: TmemObject) -> None:
        """Forget an object whose pages have all been flushed."""
        del thing.pool.objects[thing.object_id]
        self._handles[thing.owner_base >> OWNER_INDEX_BITS] = None

    def drop_pool(self, pool: Pool) -> None:
        """Forget a pool without objects."""
        assert not pool.objects
        del self.pools[pool.pool_id]

    def objects(self) -> list[TmemObject]:
        """Every object of every pool."""
        return [thing for thing in self._handles if thing]

    def entries_of(self, handle: int) -> memoryview | None:
        """The page-table entries of the object that has a handle now; None: no object has it."""
        thing = self._handles[handle] if handle < len(self._handles) else None
        return thing.table.entries if thing else None

    def forget(self, owner: int) -> int:
        """An ephemeral page was evicted: make its entry EMPTY; returns the entry that it had."""
        thing = self._handles[owner >> OWNER_INDEX_BITS]
        assert thing
        index = owner & ((1 << OWNER_INDEX_BITS) - 1)
        entry = thing.table.entries[index]
        thing.table.entries[index] = EMPTY
        return entry
