"""Which of a region's pages are resident, and in which order they leave."""

import random

from zcache.pager.pages import ResidentPages


def test_they_leave_in_the_order_in_which_they_came() -> None:
    pages = ResidentPages(10, 10)
    for page in (3, 9, 0, 5):
        pages.came(page)
    assert pages.count == 4 and pages.is_resident(9) and not pages.is_resident(1)
    assert pages.begin_to_leave(2) == [3, 9]
    pages.left([3])
    pages.stayed(9)
    pages.came(1)
    assert pages.begin_to_leave(9) == [0, 5, 9, 1] and pages.begin_to_leave(9) == []
    assert pages.count == 4 and not pages.is_resident(3)
    pages.left([0, 5, 9, 1])
    pages.came(3)
    assert pages.begin_to_leave(1) == [3]


def test_beside_lists(rng: random.Random) -> None:
    """Of 50 pages of which 20 stay: of 5 new ones each, and within 10 that leave soon."""
    pages, new, returned, leaving, left = ResidentPages(50, 20), list[int](), list[int](), list[int](), list[int]()
    came_back = 0
    for _ in range(5000):
        match rng.randrange(4):
            case 0 | 1:
                absent = sorted({*range(50)} - {*new, *returned, *leaving})
                if absent:
                    page = rng.choice(absent)
                    pages.came(page)
                    is_soon = page in left[-10:]
                    came_back += is_soon
                    (returned if is_soon else new).append(page)
            case 2:
                most, expected = rng.randrange(1, 6), list[int]()
                while len(expected) < most and (new or returned):
                    expected.append((new if len(new) > 5 or not returned else returned).pop(0))
                assert pages.begin_to_leave(most) == expected
                leaving += expected
            case 3:
                if leaving:
                    page = leaving.pop(rng.randrange(len(leaving)))
                    if rng.random() < 0.3:
                        pages.stayed(page)
                        new.append(page)
                    else:
                        pages.left([page])
                        left.append(page)
        assert pages.count == len(new) + len(returned) + len(leaving) == pages.counted()
    assert came_back > 100


def test_what_is_touched_again_stays_while_somebody_goes_through_all_of_it() -> None:
    pages = ResidentPages(1000, 40)

    def touch(page: int) -> bool:
        if pages.is_resident(page):
            return True
        if pages.count == 40:
            pages.left(pages.begin_to_leave(1))
        pages.came(page)
        return False

    hits = 0
    for turn in range(4000):
        hits += touch(turn % 12)
        touch(100 + turn % 900)
    assert hits > 3900


def test_how_far_a_run_of_absent_pages_goes() -> None:
    pages = ResidentPages(20, 20)
    pages.came(7)
    pages.came(12, 2)
    assert pages.begin_to_leave(1) == [7]
    assert [pages.absent_run(first, 8) for first in (0, 5, 7, 8, 14, 19)] == [7, 2, 0, 4, 6, 1]
    assert pages.count == 3


def test_those_of_a_range_leave_at_once() -> None:
    pages = ResidentPages(20, 20)
    pages.came(3, 6)
    assert pages.begin_to_leave_of(4, 6) == [4, 5]
    pages.left([4, 5])
    assert pages.begin_to_leave(9) == [3, 6, 7, 8]
    pages.stayed(6)
    pages.left([3, 7, 8])
    assert pages.begin_to_leave_of(0, 20) == [6] and pages.count == 1
