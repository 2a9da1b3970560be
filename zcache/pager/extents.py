"""Which pages of a store are whose: each region has a run of them."""

from zcache.errors import BadInput
from zcache.pages.entry import PAGE_BYTES


class Extents:
    """Of `page_count` pages; a run is taken where the first one that is long enough is free."""

    def __init__(self, page_count: int) -> None:
        self._page_count = page_count
        self._taken: dict[int, int] = {}  # by its first page, where a run ends

    def take(self, page_count: int) -> int:
        """The first page of so many in a row. Raises `BadInput` if there are not so many."""
        begin = longest = 0
        for first, stop in [*sorted(self._taken.items()), (self._page_count, 0)]:
            if first - begin >= page_count:
                self._taken[begin] = begin + page_count
                return begin
            longest = max(longest, first - begin)
            begin = stop
        raise BadInput(
            f"size={page_count * PAGE_BYTES}: other regions have the rest of the pager's "
            f"{self._page_count * PAGE_BYTES} bytes; give at most {longest * PAGE_BYTES}, or the pager a larger size"
        )

    def give(self, first: int) -> None:
        """The run that begins there is free again."""
        del self._taken[first]
