"""What keeps a swap safe, is set outside of what it protects, and may be changed by others while the swap is on: the
keeper looks at it again, and puts it back.

  * `vm.watermark_boost_factor` and `vm.min_free_kbytes`, as swap-up has set them (sysctls.py): a package's
    `sysctl --system` and tuned write all of theirs again. More of the reserve is no harm, and stays.
  * The OOM score of the keeper and its servers, which are not to be killed for want of memory: whoever sorts processes
    by their names may give them another.
  * The marks by which systemd's own killers pass the control group by (cgroup.py). (The group's limit is the keeper's
    affair, too: `cgroup.SwaplessGroup`.)

What a process could not have at its start is not put back. All is read through descriptors that are open, but for the
scores of the servers, which come and go.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from zcache.swap import cgroup
from zcache.swap.reserve import Reserve

PROC: Final = Path("/proc")
#: As in sysctls.py, which the keeper does not load.
BOOST_FACTOR: Final = "vm/watermark_boost_factor"


class _Held(NamedTuple):
    """One of them: what it is, and has to be."""

    what: str
    value: bytes
    read: Callable[[], bytes]
    write: Callable[[bytes], object]

    def holds(self) -> bool:
        """As far as can be seen: a process may have ended."""
        with contextlib.suppress(OSError):
            return self.read().strip() == self.value
        return True

    def put_back(self) -> str:
        """What became of it, in one line."""
        what = f"{self.what} was changed, and has to be {self.value.decode()} while the swap is on"
        try:
            self.write(self.value)
        except OSError as error:
            return f"WARNING: {what}; it cannot be put back: {error.strerror}"
        return f"{what}: put back"


class Watched:
    """Of one keeper; `group` is its control group, if it has one that is its own."""

    def __init__(self, reserve: Reserve, group: Path | None, proc: Path = PROC) -> None:
        self._reserve = reserve
        self._proc = proc
        self._held: list[_Held] = []
        with contextlib.suppress(OSError):
            boost = os.open(proc / "sys" / BOOST_FACTOR, os.O_RDWR | os.O_CLOEXEC)
            self._held.append(
                _Held(
                    BOOST_FACTOR.replace("/", "."),
                    b"0",
                    lambda: os.pread(boost, 32, 0),
                    lambda value: os.pwrite(boost, value, 0),
                )
            )
        if group is not None:
            folder = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            marks = [_mark(folder, mark) for mark in cgroup.SPARED]
            self._held += [mark for mark in marks if mark.holds()]
        own_score = self._score(os.getpid())
        self._is_exempt = own_score.holds()

    def put_back(self, pids: Iterable[int]) -> list[str]:
        """While the swap is on: what became of each that was changed, in a line. `pids` are the servers'."""
        scores = [self._score(pid) for pid in (os.getpid(), *pids)] if self._is_exempt else []
        said = [held.put_back() for held in (*self._held, *scores) if not held.holds()]
        kib = self._reserve.raise_again()
        if kib:
            said.append(f"vm.min_free_kbytes was lowered, and has to be {kib} while the swap is on: put back")
        return said

    def _score(self, pid: int) -> _Held:
        file = self._proc / str(pid) / "oom_score_adj"
        return _Held(f"the OOM score (oom_score_adj) of process {pid}", b"-1000", file.read_bytes, file.write_bytes)


def _mark(folder: int, mark: str) -> _Held:
    return _Held(
        f"the mark {mark} of the control group",
        b"1",
        lambda: _xattr(folder, mark),
        lambda value: os.setxattr(folder, mark, value),
    )


def _xattr(folder: int, mark: str) -> bytes:
    try:
        return os.getxattr(folder, mark)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return b""
        raise
