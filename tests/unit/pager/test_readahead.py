"""How many pages a fault brings."""

from zcache.pager.readahead import MAX_WINDOW_PAGES, ROWS, Readahead


def fault(readahead: Readahead, page: int) -> int:
    """As a pager does it: how many it brought."""
    window = readahead.window(page)
    readahead.brought(page + window, window)
    return window


def test_a_row_is_followed_further_and_further() -> None:
    readahead, page, windows = Readahead(), 100, []
    for _ in range(8):
        windows.append(fault(readahead, page))
        page += windows[-1]
    assert windows == [1, 2, 4, 8, 16, MAX_WINDOW_PAGES, MAX_WINDOW_PAGES, MAX_WINDOW_PAGES]
    assert fault(readahead, page + 1) == 1


def test_several_rows_at_once() -> None:
    readahead, places = Readahead(), [1000 * row for row in range(ROWS)]
    for turn in range(6):
        for row, page in enumerate(places):
            brought = fault(readahead, page)
            assert brought == min(1 << turn, MAX_WINDOW_PAGES)
            places[row] += brought


def test_faults_anywhere_bring_one_page_and_rows_beyond_so_many_are_forgotten() -> None:
    readahead = Readahead()
    for page in range(0, 10_000, 7):
        assert fault(readahead, page) == 1
    readahead = Readahead()
    first = fault(readahead, 5)
    for page in range(1000, 1000 + 10 * ROWS, 10):
        fault(readahead, page)
    assert first == fault(readahead, 6) == 1
