"""Kernel settings that are held while any zcache swap is on, and put back when the last one is off.

`vm.watermark_boost_factor=0`: after a fragmentation event the kernel raises ("boosts") the min
watermark until kswapd has reclaimed that much. While kswapd waits for the swap device that cannot
happen, and the memory that the server needs for its next reply lies below the raised mark: seen in
the test VM, 4.9 MiB free of a min of 2.5 raised to 6.6, and the server looping in the page
allocator for ever.

`vm.min_free_kbytes` at least 16 MiB: each reply of the server needs a socket buffer from the
kernel. A real-time task may take a quarter of what lies below the min watermark (ALLOC_HARDER in
mm/page_alloc.c of 6.1), and the server is one; that quarter has to be worth something. Without it a
worker looped in the page allocator, sending a reply (seen, 500 MiB guest).

There can be several swap areas, so what the settings were before is kept beside the names of all
that hold them, in a record of its own; it is written before the settings are. One that somebody
else has changed meanwhile is left alone.
"""

import contextlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zcache.errors import SwapError
from zcache.swap.locked_record import locked

PROC: Final = Path("/proc/sys")
#: /run is emptied at boot, as the settings are.
RECORD: Final = Path("/run/zcache-sysctls.json")
BOOST_FACTOR: Final = "vm/watermark_boost_factor"
MIN_FREE: Final = "vm/min_free_kbytes"
MIN_FREE_KIB: Final = 16 << 10


@dataclass
class _Held:
    """The record: who holds the settings (paths of state files), what they were, and what we made
    of them."""

    holders: list[str] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)
    ours: dict[str, str] = field(default_factory=dict)


def _decode(text: bytes) -> _Held:
    """Raises an error of Python's own for what is not a record: its names and values go to
    /proc/sys."""
    held = _Held(**json.loads(text))
    settings = {**held.before, **held.ours}
    if not held.before.keys() == held.ours.keys() <= {BOOST_FACTOR, MIN_FREE}:
        raise ValueError("other settings than ours")
    if not all(type(each) is str for each in (*held.holders, *settings.values())):
        raise ValueError("not text")
    return held


def while_on(root: Path = PROC) -> dict[str, str]:
    """What to set: the reserve is only ever raised, and a setting that a kernel does not have is
    left out."""
    wanted = {BOOST_FACTOR: "0"}
    min_free_kib = int((root / MIN_FREE).read_text())
    wanted[MIN_FREE] = str(max(min_free_kib, MIN_FREE_KIB))
    return {name: value for name, value in wanted.items() if (root / name).exists()}


def hold(holder: Path, root: Path = PROC, record: Path = RECORD) -> None:
    """Write the settings, on behalf of a swap area whose state file is `holder`."""
    with _locked(record) as (held, save):
        held.holders = [name for name in held.holders if Path(name).exists()]
        if not held.holders:
            wanted = while_on(root)
            now = {name: (root / name).read_text().strip() for name in wanted}
            # What a holder that was killed left behind is not what was there before.
            held.before = {n: held.before[n] if held.ours.get(n) == value else value for n, value in now.items()}
            held.ours = wanted
        held.holders.append(str(holder))
        save()
        for name, value in held.ours.items():
            (root / name).write_text(value)


def release(holder: Path, root: Path = PROC, record: Path = RECORD, may_be_lent: bool = False) -> list[str]:
    """Undo `hold`: the last holder puts the settings back. Returns what could not be put back, one
    line each.

    The reserve `may_be_lent` to a server (`reserve.py`) by a keeper that was killed: it is ours,
    whatever it is now.
    """
    if not record.exists():
        return []
    try:
        return _release(holder, root, record, may_be_lent)
    except SwapError as error:
        return [str(error)]


def changed(holder: Path, root: Path = PROC, record: Path = RECORD) -> list[str]:
    """What somebody else has changed of that which `holder` holds, and how to put it right, a line
    each. (A larger reserve is no harm.)"""
    try:
        held = _decode(record.read_bytes().partition(b"\n")[0])
        now = {name: (root / name).read_text().strip() for name in held.ours}
    except (OSError, ValueError, TypeError, RecursionError):  # none is held, or who takes it down will say
        return []
    if str(holder) not in held.holders:
        return []
    return [
        f"{name.replace('/', '.')} is {value}, and has to be {held.ours[name]} while the swap is on. The keeper sets "
        f"it again within a second. If this line stays: sysctl {name.replace('/', '.')}={held.ours[name]}"
        for name, value in now.items()
        if value != held.ours[name] and not (name == MIN_FREE and int(value) > int(held.ours[name]))
    ]


def holders(record: Path = RECORD) -> list[str]:
    """The state files of all swap areas that hold the settings: of those that are on."""
    if not record.exists():
        return []
    with _locked(record) as (held, _save):
        return [name for name in held.holders if Path(name).exists()]


def _release(holder: Path, root: Path, record: Path, may_be_lent: bool) -> list[str]:
    failures = []
    with _locked(record) as (held, save):
        if may_be_lent and str(holder) in held.holders and MIN_FREE in held.ours:
            with contextlib.suppress(OSError):  # it is tried again below, or by the last holder
                (root / MIN_FREE).write_text(held.ours[MIN_FREE])
        held.holders = [name for name in held.holders if name != str(holder) and Path(name).exists()]
        if held.holders:
            save()
            return []
        for name, value in held.before.items():
            try:
                if (root / name).read_text().strip() == held.ours[name]:
                    (root / name).write_text(value)
            except OSError as error:
                failures.append(f"{root / name} could not be put back to {value}: {error.strerror}")
        record.unlink()
    return failures


def _locked(record: Path) -> AbstractContextManager[tuple[_Held, Callable[[], None]]]:
    """The record and what writes it, for one at a time; made if it is not there."""
    return locked(record, _decode, _Held, f"set {BOOST_FACTOR} and {MIN_FREE} in {PROC} as they should be")
