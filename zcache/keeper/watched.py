"""What keeps a swap safe, is set outside of what it protects, and may be changed by others while
the swap is on: the keeper looks at it again, and puts it back.

  * `vm.watermark_boost_factor` and `vm.min_free_kbytes`, as swap-up has set them (sysctls.py): a
    package's `sysctl --system` and tuned write all of theirs again. More of the reserve is no harm,
    and stays.
  * The OOM score of the keeper and its servers, which are not to be killed for want of memory:
    whoever sorts processes by their names may give them another.
(The group's limit is the keeper's affair, too: `cgroup.SwaplessGroup`.)

What a process could not have at its start is not put back. All is read through descriptors that are
open: to look a path up, or an extended attribute of a group, may take a lock of the kernel's that
is held by somebody who waits for memory, and so for a server that has just died, which the keeper
is to replace.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from zcache.keeper.reserve import Reserve

PROC: Final = Path("/proc")
#: As in sysctls.py, which the keeper does not load.
BOOST_FACTOR: Final = "vm/watermark_boost_factor"


class _Held(NamedTuple):
    """One of them: what it is, and has to be."""

    what: str
    value: bytes
    descriptor: int

    def holds(self) -> bool:
        """As far as can be seen: a process may have ended."""
        with contextlib.suppress(OSError):
            return os.pread(self.descriptor, 32, 0).strip() == self.value
        return True

    def put_back(self) -> str:
        """What became of it, in one line."""
        what = f"{self.what} was changed, and has to be {self.value.decode()} while the swap is on"
        try:
            os.pwrite(self.descriptor, self.value, 0)
        except OSError as error:
            return f"WARNING: {what}; it cannot be put back: {error.strerror}"
        return f"{what}: put back"


class Watched:
    """Of one keeper."""

    def __init__(self, reserve: Reserve, proc: Path = PROC) -> None:
        self._reserve = reserve
        self._proc = proc
        self._settings: list[_Held] = []
        with contextlib.suppress(OSError):
            boost = os.open(proc / "sys" / BOOST_FACTOR, os.O_RDWR | os.O_CLOEXEC)
            self._settings.append(_Held(BOOST_FACTOR.replace("/", "."), b"0", boost))
        self._scores: dict[int, _Held] = {}
        self._see(os.getpid())
        self._is_exempt = bool(self._scores) and self._scores[os.getpid()].holds()

    def put_back(self, pids: Iterable[int]) -> list[str]:
        """While the swap is on: what became of each that was changed, in a line. `pids` are the
        servers'."""
        held = list(self._settings)
        if self._is_exempt:
            self._follow({os.getpid(), *pids})
            held += self._scores.values()
        said = [each.put_back() for each in held if not each.holds()]
        kib = self._reserve.raise_again()
        if kib:
            said.append(f"vm.min_free_kbytes was lowered, and has to be {kib} while the swap is on: put back")
        return said

    def _follow(self, pids: set[int]) -> None:
        """Servers come and go: a score is opened once, when its server is first seen."""
        for gone in self._scores.keys() - pids:
            os.close(self._scores.pop(gone).descriptor)
        for new in pids - self._scores.keys():
            self._see(new)

    def _see(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # it has ended
            score = os.open(self._proc / str(pid) / "oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
            self._scores[pid] = _Held(f"the OOM score (oom_score_adj) of process {pid}", b"-1000", score)
