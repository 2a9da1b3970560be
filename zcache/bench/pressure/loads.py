"""The loads: which programs each one runs, and how large they are.

All are sized by what the guest has free once its swap is on: as much as there is, and OVERCOMMIT
budgets more. So the same share of each is swapped out whatever the guest and the server take for
themselves, and even at two pages to a frame the budget is exhausted, and frames are written back.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: In budgets: two fill one at two pages to a frame, the third is written back.
OVERCOMMIT: Final = 3
#: What a process of the heap program takes besides its share of memory.
PROCESS_MIB: Final = 4
BUILD_JOBS: Final = 4
#: How fast memory fills while it is swapped out: 12 to 20 MiB a second were seen, under emulation
#: on a busy host.
FILL_MIB_PER_SECOND: Final = 12
#: Beside a build, whatever else is open on the machine: looked at, but not all the time.
OPEN_REST_SECONDS: Final = 0.002


@dataclass(frozen=True)
class Guest:
    """What a load is sized by."""

    memory_mib: int
    available_mib: int
    budget_mib: int
    #: A stamped disk (reader.py) larger than memory.
    files: str
    seconds: int

    @property
    def load_mib(self) -> int:
        return self.available_mib + OVERCOMMIT * self.budget_mib


@dataclass(frozen=True)
class Load:
    """The cell ends when `foreground` does; `background` is then told to by SIGTERM."""

    foreground: list[str]
    background: list[str] | None = None


def program_words(name: str, *arguments: object) -> list[str]:
    """How one of the programs beside this file is run."""
    path = Path(__file__).with_name(f"{name}.py")
    return [sys.executable, "-I", "-S", str(path), *map(str, arguments)]


def _stress(guest: Guest) -> Load:
    # rand-set: every page compresses to a little less than half; with other methods many are
    # same-filled.
    words = ["stress-ng", "--vm", "2", "--vm-bytes", f"{guest.load_mib}M", "--vm-method", "rand-set", "--vm-keep"]
    # Unlike the others it counts the time in which it fills its memory.
    return Load([*words, "--verify", "--timeout", f"{guest.seconds + guest.load_mib // FILL_MIB_PER_SECOND}s"])


def _heartbeat(guest: Guest) -> Load:
    return Load(program_words("heap", guest.load_mib, 1, guest.seconds, 0))


def _processes(guest: Guest) -> Load:
    count = guest.memory_mib // 16
    return Load(program_words("heap", max(guest.load_mib - count * PROCESS_MIB, count), count, guest.seconds, 0))


def _build(guest: Guest) -> Load:
    heap = program_words("heap", guest.load_mib, 1, guest.seconds, OPEN_REST_SECONDS)
    return Load(heap, program_words("build", "/tmp/build", BUILD_JOBS))


def _cache(guest: Guest) -> Load:
    return Load(program_words("heap", guest.load_mib, 1, guest.seconds, 0), program_words("reader", guest.files))


LOADS: Final[dict[str, Callable[[Guest], Load]]] = {
    "stress": _stress,
    "heartbeat": _heartbeat,
    "processes": _processes,
    "build": _build,
    "cache": _cache,
}
