"""What the sizes that were given amount to: how far the budget may move, which allocator can keep
its promise with that, and what room there is below. All sizes are bytes.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from zcache.allocators.choice import ALLOCATORS, DEFAULT_ALLOCATOR, FALLBACK_ALLOCATOR
from zcache.errors import BadInput
from zcache.image.signs import Signs
from zcache.linux.group_limits import Room
from zcache.pageframes.slots import budget_of
from zcache.pages.entry import FRAME_MASK, PAGE_BYTES
from zcache.parameters import KEYS, parse_choice
from zcache.sizes import RANGE, parse_budget

#: Ids for frames in RAM and below, twice over, in the 31 bits that a page-table entry has for one.
MAX_SIZE_BYTES: Final = (FRAME_MASK + 1) // 2 * PAGE_BYTES


class Capacity(NamedTuple):
    """What a server can hold. `lacking`: why the allocator is not the default one, if nobody asked
    for another."""

    min_budget_bytes: int
    budget_bytes: int  # that it can become
    allocator: str
    lacking: str


def budgets(
    text: str, image: int | None, before: Mapping[str, Any] | None, rooms: Callable[[], Iterable[Room]]
) -> tuple[int, int]:
    """The least and the most that `budget=` asks for; `before` is the header of an image that there
    is. Raises `BadInput`.

    The machine's RAM may have changed since the image was made (a balloon, hot plugging), and with
    it what 25% are.
    """
    if before and image is not None:
        return _budgets_of(before, text, Signs(image).is_served(), rooms)
    return _parse_budget(text, rooms)


def capacity(
    given: Mapping[str, str],
    size_bytes: int,
    budget_bytes: tuple[int, int],
    backing: Path | None,
    before: Mapping[str, Any] | None,
    *,
    overcommit: bool,
    has_clean: bool,
    remote_bytes: int = 0,
) -> Capacity:
    """Of a device of that size, with that least and most budget; `remote_bytes` are those of
    frames that engines hold twice. Raises `BadInput` for what was `given` if the allocator cannot
    work with it; an image that there is (`before`) has been accepted once."""
    least_bytes, most_bytes = budget_bytes
    default = before["allocator"] if before else DEFAULT_ALLOCATOR
    lacking = ""
    if not before and "allocator" not in given:
        lacking = _lacking_for_the_default(size_bytes, least_bytes, backing, overcommit, remote_bytes)
        default = FALLBACK_ALLOCATOR if lacking else default
    allocator = parse_choice("allocator", given.get("allocator", default), tuple(ALLOCATORS))
    if before:
        return Capacity(least_bytes, most_bytes, allocator, lacking)
    min_bytes, needed_bytes = _budget_range(allocator, size_bytes)
    if least_bytes < min_bytes:
        raise BadInput(
            f"budget={given['budget']}: too small{f' for allocator={allocator}' if 'allocator' in given else ''}; "
            f"give at least {min_bytes >> 10}K"
        )
    is_all = backing is None and not overcommit  # the budget is all that there is
    if is_all and needed_bytes > least_bytes + remote_bytes:
        what = f"takes {needed_bytes} bytes with allocator={allocator} if nothing compresses, more"
        engines = f" and remote_budget={given['remote_budget']}" if remote_bytes else ""
        raise BadInput(
            f"size={given['size']}: {'larger' if size_bytes > least_bytes + remote_bytes else what} than "
            f"budget={given['budget']}{engines} ({least_bytes + remote_bytes} bytes), and no backing; "
            "give a smaller size, a larger budget, backing=PATH, or overcommit=yes"
        )
    if not has_clean:
        most_bytes = max(min(most_bytes, needed_bytes), min_bytes)  # more would be locked for nothing
        least_bytes = min(least_bytes, most_bytes)
    return Capacity(least_bytes, most_bytes, allocator, lacking)


def _parse_budget(text: str, rooms: Callable[[], Iterable[Room]]) -> tuple[int, int]:
    return parse_budget(text, KEYS["budget"], rooms() if "%" in text else ())


def _budgets_of(
    header: Mapping[str, Any], text: str, is_served: bool, rooms: Callable[[], Iterable[Room]]
) -> tuple[int, int]:
    """The most is what an image was made with; the least what was said, as far as that goes, and
    can be found out."""
    most_bytes = budget_of(header["slot_count"]) * int(header["frame_bytes"])
    if RANGE not in text:
        return most_bytes, most_bytes
    if "%" in text and not is_served:  # of what, control groups say: not looked at while nobody serves (Server)
        return 0, most_bytes
    try:
        least_bytes = min(_parse_budget(text, rooms)[0], most_bytes)
    except BadInput:  # it was once accepted, and RAM has become less: what size= was promised decides
        least_bytes = 0
    return least_bytes, most_bytes


def _budget_range(allocator: str, size_bytes: int) -> tuple[int, int]:
    """The least budget that an allocator works with, and the most that it can need for a device of
    that size."""
    chosen = ALLOCATORS[allocator]
    needed_frames = chosen.frames_for(size_bytes // PAGE_BYTES)
    return chosen.min_budget_frames * chosen.frame_bytes, needed_frames * chosen.frame_bytes


def _lacking_for_the_default(
    size_bytes: int, budget_bytes: int, backing: Path | None, overcommit: bool, remote_bytes: int
) -> str:
    """What the default allocator lacks to keep its promise with what was given; "" if it can keep
    it."""
    chosen = ALLOCATORS[DEFAULT_ALLOCATOR]
    frame_bytes = chosen.frame_bytes
    least_bytes = chosen.min_budget_frames * frame_bytes
    if budget_bytes < least_bytes:
        return f"give at least budget={least_bytes >> 20}M"
    if overcommit:
        return ""
    missing_frames = chosen.frames_for(size_bytes // PAGE_BYTES) - budget_bytes // frame_bytes
    missing_frames -= remote_bytes // frame_bytes
    if backing:
        missing_frames -= _room_below(backing) // frame_bytes - 1  # a header
    if missing_frames <= 0:
        return ""
    missing_mib = missing_frames * frame_bytes // (1 << 20) + 1
    where = "a larger backing" if backing else "a backing, or a larger budget"
    return f"{missing_mib}M more are needed if nothing compresses; give {where}"


def _room_below(backing: Path) -> int:
    """Bytes of a device, or of a file that holds something; for a file that does not, as much as
    there is for it."""
    try:
        if not backing.exists() or not (backing.is_block_device() or backing.stat().st_size):
            file_system = os.statvfs(backing.parent)
            return file_system.f_bavail * file_system.f_frsize
        descriptor = os.open(backing, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return MAX_SIZE_BYTES  # whatever it is, opening it will say so
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    except OSError:
        return MAX_SIZE_BYTES
    finally:
        os.close(descriptor)
