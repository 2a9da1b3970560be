"""Whoever has something in swap is frozen, and thawed: the second step of `zcache sleep`, and its
undoing (sleep.py)."""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from zcache.errors import SwapError
from zcache.keeper import frozen
from zcache.keeper.state import StateFolder
from zcache.linux import cgroup
from zcache.swap import control_groups, sysctls
from zcache.swap.apart import apart
from zcache.swap.control_groups import PARKED, ControlGroups, Process

#: A task under load waits for its page first, and then freezes: 4 s were seen in an emulated guest
#: that thrashes.
FREEZE_SECONDS: Final = 30.0
#: What starts after the groups are frozen may have swap by then: new rounds, until there is nothing
#: new.
MOST_ROUNDS: Final = 5
LOOK_SECONDS: Final = 0.02


class Freezer:
    """Of control groups below `root`. `records` has, for each swap area, the file in which what is
    frozen is written down, and its keeper's pid."""

    def __init__(self, root: Path, proc: Path, records: Mapping[Path, int]) -> None:
        self._root = root
        self._proc = proc
        self._records = dict(records)
        self._ours: set[Path] = set()  # that we froze, whatever becomes of the records

    def freeze(self) -> list[Path]:
        """The groups that are frozen, by us or by others."""
        groups = ControlGroups(self._root, self._proc)
        ours = self._ours
        for record in self._records:  # of a `pre` before this one
            found = frozen.read(record)
            ours.update(found[1] if found else [])
        deadline_seconds = time.monotonic() + FREEZE_SECONDS
        others: set[Path] = set()
        for _ in range(MOST_ROUNDS):
            processes = list(groups.processes())
            own_pids = control_groups.own_pids(processes, os.getpid(), set(self._records.values()))
            with_swap = groups.with_swap(processes, groups.awake(processes, own_pids))
            others.update(each for each in with_swap if each not in ours and control_groups.is_asked_to_freeze(each))
            parking = groups.to_park(processes, own_pids)
            new = {*with_swap, *(process.group / PARKED for process in parking)} - ours - others
            if not (new or parking):
                break
            ours |= new
            self._write_down(ours)
            _park(parking)
            for group in sorted(new):
                control_groups.freeze(group)
            self._wait_until_frozen(ours | others, processes, deadline_seconds)
        return sorted(ours | others)

    def _write_down(self, groups: set[Path]) -> None:
        """Into each area's folder, in the group of its keeper: what is written there is never
        swapped out."""
        for record, keeper_pid in self._records.items():

            def write(record: Path = record, keeper_pid: int = keeper_pid) -> None:
                cgroup.join(keeper_pid)
                frozen.write(record, sorted(groups))

            apart(write)

    def _wait_until_frozen(self, groups: set[Path], processes: list[Process], deadline_seconds: float) -> None:
        while late := [group for group in sorted(groups) if not control_groups.is_frozen(group)]:
            if time.monotonic() > deadline_seconds:
                group = late[0]
                names = ", ".join(f"{each.name} ({each.pid})" for each in processes if each.group == group) or "nobody"
                raise SwapError(
                    f"/{group.relative_to(self._root)} does not freeze in {FREEZE_SECONDS:.0f} s, so the "
                    f"machine cannot sleep: end what waits there (in {names}), or see the kernel log"
                )
            time.sleep(LOOK_SECONDS)

    def thaw(self) -> None:
        """What it has frozen, and what the records name."""
        thaw(self._records, self._root, self._ours)


def thaw(records: Iterable[Path], root: Path | None, more: Iterable[Path] = ()) -> None:
    """What the records name, and `more`; whoever was parked goes back."""
    records = list(records)
    for record in records:
        found = frozen.read(record)
        frozen.thaw(found[1] if found else [])
    frozen.thaw(more)
    if root:
        control_groups.unpark(root)
    for record in records:
        record.unlink(missing_ok=True)


def all_records() -> list[Path]:
    """Of all swap areas, also of one whose state cannot be read; of the usual one, if nobody knows
    which there are."""
    try:
        holders = sysctls.holders()
    except (SwapError, OSError):
        return [StateFolder().frozen]
    return [StateFolder(Path(holder).parent).frozen for holder in holders]


def _park(processes: list[Process]) -> None:
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended
            control_groups.park(process)
