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


def test_beside_a_list(rng: random.Random) -> None:
    pages, model, leaving = ResidentPages(50, 50), list[int](), list[int]()
    for _ in range(3000):
        match rng.randrange(4):
            case 0 | 1:
                absent = [page for page in range(50) if page not in model and page not in leaving]
                if absent:
                    page = rng.choice(absent)
                    pages.came(page)
                    model.append(page)
            case 2:
                most = rng.randrange(1, 6)
                went = pages.begin_to_leave(most)
                assert went == model[:most]
                del model[:most]
                leaving += went
            case 3:
                if leaving:
                    page = leaving.pop(rng.randrange(len(leaving)))
                    if rng.random() < 0.3:
                        pages.stayed(page)
                        model.append(page)
                    else:
                        pages.left([page])
        assert pages.count == len(model) + len(leaving)


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
