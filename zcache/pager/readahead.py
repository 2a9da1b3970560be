"""How many pages a fault brings: those that follow, too, where faults come in a row.

Several rows at a time are followed, as a job that goes through two arrays makes them. In each, the
window is doubled as long as the next fault is where it ends, and so all of it was used; a fault
elsewhere is the beginning of another row.
"""

from typing import Final

#: What a fault brings, at most, itself included.
MAX_WINDOW_PAGES: Final = 32
ROWS: Final = 16


class Readahead:
    """Of a region."""

    def __init__(self) -> None:
        self._windows: dict[int, int] = {}  # by where the next fault will be; the row that began first is first

    def window(self, page: int) -> int:
        """For a fault on that page."""
        window = self._windows.pop(page, 0)
        return min(2 * window, MAX_WINDOW_PAGES) if window else 1

    def brought(self, stop: int, window: int) -> None:
        """By a window: the row goes on at `stop`, the next page that is not there."""
        if len(self._windows) == ROWS:
            del self._windows[next(iter(self._windows))]
        self._windows[stop] = window
