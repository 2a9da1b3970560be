"""Other swap beside zcache's: which area the kernel fills first, and zswap in front of all of them.

The kernel fills the areas from the highest priority down; those of the same priority in turn, page
by page (swapon(2)). What one area holds does not move to another. So beside a zram of the same
priority half of the pages, cold ones too, stay in zram for good, and the disk below zcache is idle;
beside one of a higher priority zcache gets nothing until that one is full.

zswap (the kernel's, Documentation/admin-guide/mm/zswap.rst) keeps compressed what goes to any swap
area, until it is full: what zcache then gets it has to compress once more.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from zcache.linux.proc_swaps import SwapEntry

ZSWAP: Final = Path("/sys/module/zswap/parameters/enabled")
#: Of swapon(2).
MAX_PRIORITY: Final = 32767


def in_order(areas: Iterable[SwapEntry]) -> list[SwapEntry]:
    """As the kernel fills them."""
    return sorted(areas, key=lambda area: -area.priority)


def is_zswap_on(switch: Path = ZSWAP) -> bool:
    """Whether zswap takes pages. A kernel without it has no such file."""
    try:
        return switch.read_text().strip() == "Y"
    except OSError:
        return False


def remarks(device: str, priority: int, areas: Sequence[SwapEntry], has_zswap: bool) -> Iterator[str]:
    """What is to be said of the others when `device` is turned on: a line each, with what to do
    about it."""
    others = [area for area in areas if area.path != device]
    # Two of zcache's share the work: that is meant.
    same = [area.path for area in others if area.priority == priority and not area.path.startswith("/dev/nbd")]
    higher = [area for area in others if area.priority > priority]
    highest = max([priority, *(area.priority for area in higher)])
    first = "give that one a lower priority" if highest == MAX_PRIORITY else f"give --priority {highest + 1}"
    if same:
        yield (
            f"{', '.join(same)}: the same priority as {device} ({priority}), so the kernel fills both in turn, and "
            f"cold pages stay in either for good; for zcache to be filled first, {first}"
        )
    if higher:
        names = ", ".join(f"{area.path} ({area.priority})" for area in in_order(higher))
        yield (
            f"{names}: a higher priority than {device} ({priority}), so zcache is used only when that is full; "
            f"for zcache to be filled first, {first}"
        )
    if has_zswap:
        yield (
            f"zswap is on: pages are compressed in it, and again in zcache; to turn it off: echo N > {ZSWAP} "
            "(at boot: zswap.enabled=0)"
        )
