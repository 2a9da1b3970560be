"""A write of part of a page: read, changed and put, while others may write the whole of it.

One page at a time is written so, which is enough: no swap client does it in earnest. `turn` is held
for all of it, and is the first of the store's locks; all else here is called under `Store.lock`.
Whoever puts or flushes the page meanwhile says so (`agrees`), and the partial write, which finds
that out at its own put, starts again.
"""

import threading

from zcache.pages.tmem import TmemObject


class PartialWrite:
    """The one partial write that may be under way."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.page: tuple[TmemObject, int] | None = None  # object and index, while one is under way
        self._broken = False  # somebody else put or flushed the page since `begin`

    def begin(self, thing: TmemObject, index: int) -> None:
        """The page is about to be read."""
        self.page = (thing, index)
        self._broken = False

    def end(self) -> None:
        """It was put, or failed, or is to be read again."""
        self.page = None

    def agrees(self, thing: TmemObject, first: int, last: int, own: bool) -> bool:
        """Before pages `first` to `last` (exclusive) change: may they? Only a partial write's own
        can be refused."""
        if own:
            return not self._broken
        if self.page:
            modified, index = self.page
            if modified is thing and first <= index < last:
                self._broken = True
        return True
