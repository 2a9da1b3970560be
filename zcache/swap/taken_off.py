"""The swap taken off for as long as the machine hibernates, and turned on again, for who has asked
for that (`swap-up --hibernate`): `zcache sleep pre --hibernate` and `post --hibernate`.

Only swapoff(2) and swapon(2): device, server and keeper stay, and go into the image of memory with
all others. With no swap on them they are like any program, and the kernel swaps out to other areas,
one of which the image needs anyway. What is out has to fit elsewhere, in memory or in those, or
nothing is done.

The priority is written down before the swap goes off, so that whoever is killed in between leaves
it to `post`.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcache.errors import SwapError
from zcache.linux.proc_swaps import ProcSwaps
from zcache.swap import area, hibernation, room, swapoff

REPORT_SECONDS: Final = 5.0


@dataclass(frozen=True)
class TakenOff:
    """One swap area: its record, and what it takes to turn it on again."""

    record: Path
    device: str
    may_hibernate: bool
    is_discarding: bool

    def take_off(self, report: Callable[[str], None]) -> None:
        """Raises `SwapError`, with the swap on, when what is out does not fit elsewhere."""
        if not self.may_hibernate:
            raise SwapError(f"{self.device} was turned on without --hibernate: run swap-down before you hibernate")
        with contextlib.closing(ProcSwaps()) as swaps:
            entry = swaps.find(self.device)
            if entry is None:
                return
            short_kib = room.shortage_kib(self.device, swaps.entries())
        if short_kib:
            raise SwapError(
                f"{self.device}: what is swapped out does not fit elsewhere, so the machine cannot hibernate: "
                f"{(short_kib + 1023) >> 10} MiB more memory, or other swap, would do"
            )
        self.record.write_text(str(entry.priority))
        swapoff.swap_off(self.device, lambda: report(f"{self.device}: taking the swap off"), REPORT_SECONDS)

    def turn_on(self) -> None:
        """If it was taken off. Raises `SwapError` if it cannot be."""
        try:
            priority = int(self.record.read_text())
        except (FileNotFoundError, ValueError):
            return
        with contextlib.closing(ProcSwaps()) as swaps:
            is_on = swaps.find(self.device) is not None
        if not is_on:
            area.swap_on(self.device, priority, self.is_discarding)
        self.record.unlink(missing_ok=True)


def take_off(areas: list[TakenOff], report: Callable[[str], None]) -> None:
    """All of them, and then the kernel may hibernate; or none, and a `SwapError`."""
    try:
        for each in areas:
            each.take_off(report)
    except BaseException:
        turn_on(areas)
        raise
    hibernation.allow()


def turn_on(areas: list[TakenOff]) -> None:
    """All that were taken off; before that the kernel is kept from hibernating again."""
    hibernation.refuse()
    failures = []
    for each in areas:
        try:
            each.turn_on()
        except (SwapError, OSError) as error:
            failures.append(str(error))
    if failures:
        raise SwapError("; ".join(failures))
