"""Sizes as people write them: `512M`, `1.5G`, `64GiB`, `25%`, `64M..256M`. All are bytes, in whole
pages.

Every refusal is one line: the key, what was given, what is wrong with it, and what may be given.
"""

import math
import re
from collections.abc import Iterable
from typing import Final

from zcache.errors import BadInput
from zcache.linux import group_limits, meminfo
from zcache.linux.group_limits import Room
from zcache.pages.entry import PAGE_BYTES

_SUFFIXES: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE: Final = re.compile(
    r"([+-]?[0-9]{1,20}(?:\.[0-9]{1,20})?)(b|[kmgt])?(?:(?<=[kmgt])ib)?", re.IGNORECASE | re.ASCII
)
_SHARE: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,20})?%", re.ASCII)

#: Between the bounds of a range.
RANGE: Final = ".."


def parse_size(key: str, text: str, what: str = "bytes with a suffix such as 512M") -> int:
    """A positive number of bytes, in whole pages; `what` may be given."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise BadInput(f"{key}={text}: not a number of bytes; give {what}")
    exact = float(match[1]) if "." in match[1] else int(match[1])
    size_bytes = math.floor(exact * _SUFFIXES[(match[2] or "").lower()])
    if size_bytes <= 0:
        raise BadInput(f"{key}={text}: must be more than zero; give {what}")
    if size_bytes < PAGE_BYTES:
        example = "512M" if match[2] else f"{text.strip()}M"
        raise BadInput(f"{key}={text}: that is {size_bytes} bytes, less than a page; give a suffix, such as {example}")
    if size_bytes % PAGE_BYTES:
        below = size_bytes // PAGE_BYTES * PAGE_BYTES
        raise BadInput(f"{key}={text}: not whole pages; give a multiple of {PAGE_BYTES}, such as {below + PAGE_BYTES}")
    return size_bytes


def parse_share(text: str) -> float | None:
    """`25%` is 0.25; None: not a share."""
    return float(text.strip()[:-1]) / 100 if _SHARE.fullmatch(text.strip()) else None


def parse_budget(text: str, what: str, rooms: Iterable[Room] = ()) -> tuple[int, int]:
    """The bounds of a budget: two sizes with `..` between them, or one for both. Each may be a
    percentage of the machine's RAM, or of the least limit of the control groups."""
    least, is_range, most = text.partition(RANGE)
    ram_bytes = group_limits.ram_bytes(rooms)
    if not is_range:
        size_bytes = _parse_bound(text, text, what, ram_bytes)
        return size_bytes, size_bytes
    bounds = _parse_bound(least, text, what, ram_bytes), _parse_bound(most, text, what, ram_bytes)
    if bounds[0] > bounds[1]:
        raise BadInput(f"budget={text}: ends with less than it begins with; give the smaller one first")
    return bounds


def _parse_bound(bound: str, text: str, what: str, ram_bytes: int) -> int:
    if not bound.strip():
        lacking = "one end is missing" if text.strip() else "empty"
        raise BadInput(f"budget={text}: {lacking}; give {what}")
    machine_bytes = meminfo.read_bytes("MemTotal")
    if bound.strip().endswith("%"):
        share = parse_share(bound) or 0.0
        if not 0 < share <= 0.9:
            raise BadInput(
                f"budget={text}: not a share of RAM; give more than 0% and at most 90%, or bytes such as 160M"
            )
        size_bytes = int(ram_bytes * share) // PAGE_BYTES * PAGE_BYTES
    else:
        size_bytes = parse_size("budget", bound, what)
    if size_bytes > machine_bytes * 9 // 10:
        raise BadInput(
            f"budget={text}: more than 90% of this machine's {machine_bytes} bytes of RAM; give less, such as 25%"
        )
    return size_bytes


def human(size_bytes: float) -> str:
    """A size with a suffix."""
    for suffix in ("B", "K", "M", "G"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f}{suffix}" if suffix == "B" else f"{size_bytes:.1f}{suffix}"
        size_bytes /= 1024
    return f"{size_bytes:.1f}T"
