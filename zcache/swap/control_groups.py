"""Control groups (version 2) as a tree of folders: who is in which, who has something in swap, who
may be frozen.

Freezing a group (`cgroup.freeze`) freezes all below it, so a group that must go on keeps all above
it from being frozen, too: these are the *awake* ones. They are

  * those of the keeper with its servers, and of whoever asks for all this, with his ancestors: one
    of them is to write to /sys/power/state;
  * that of PID 1, and those of D-Bus, logind and journald, which a suspend needs. A user's own
    D-Bus is none of them.

Where programs lie beside those who must go on (in the root group where there is no systemd; in the
session of an administrator who suspends by hand), the group cannot be frozen. They are *parked*:
moved into a group of ours below theirs, which is frozen, and moved back afterwards.

The kernel counts what a group has in swap (`memory.swap.current`); shared memory belongs to the
group that first touched it, though, and may be in use in another. And the memory controller may be
off. So the processes of a group are looked at, too (`Swap:` in /proc/PID/smaps_rollup, which has
shared memory).
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcache.linux.cgroup import ROOT

PROC: Final = Path("/proc")
#: Of the programs that must go on; the kernel's names, of 15 bytes at most.
AWAKE_PROGRAMS: Final = frozenset(
    {
        *("dbus-daemon", "dbus-broker", "dbus-broker-lau", "systemd-logind", "elogind", "elogind-daemon"),
        "systemd-journal",
    }
)
USER_SLICE: Final = "user.slice"
#: The group for those who lie beside somebody who must go on.
PARKED: Final = "zcache-asleep"


@dataclass(frozen=True)
class Process:
    """A process, as far as it counts for who is to be frozen."""

    pid: int
    parent_pid: int
    session: int  # the pid of its leader: a keeper leads that of its servers
    name: str
    group: Path


def version_2(root: Path = ROOT) -> Path | None:
    """Where the groups are; None without version 2 (Linux 5.2 for freezing)."""
    for place in (root, root / "unified"):
        if (place / "cgroup.controllers").exists():
            return place
    return None


class ControlGroups:
    """The tree at `root`, and the processes in it: asked anew each time."""

    def __init__(self, root: Path, proc: Path = PROC) -> None:
        self._root = root
        self._proc = proc

    def processes(self) -> Iterator[Process]:
        """All, but for the kernel's own threads, and for who ends meanwhile."""
        for entry in self._proc.glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = (entry / "stat").read_text()
                name, _, rest = stat.partition("(")[2].rpartition(")")
                fields = rest.split()
                is_kernel_thread = int(fields[6]) & 0x00200000  # PF_KTHREAD
                if fields[0] not in "ZX" and not is_kernel_thread:
                    yield Process(int(entry.name), int(fields[1]), int(fields[3]), name, self._group_of(entry))

    def group_of(self, pid: int) -> Path | None:
        """None if it has ended."""
        with contextlib.suppress(OSError):
            return self._group_of(self._proc / str(pid))
        return None

    def _group_of(self, entry: Path) -> Path:
        path = (entry / "cgroup").read_text().rpartition("0::")[2].partition("\n")[0]
        return self._root / path.removesuffix(" (deleted)").lstrip("/")

    def swapped_kib(self, process: Process) -> int:
        """What the process has in swap, shared memory with it; 0 if it has ended."""
        with contextlib.suppress(OSError, ValueError):
            for line in (self._proc / str(process.pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Swap:"):
                    return int(line.split()[1])
        return 0

    def has_swap(self, group: Path) -> bool:
        """As far as the kernel counts it: False without the memory controller."""
        with contextlib.suppress(OSError, ValueError):
            return int((group / "memory.swap.current").read_text()) > 0
        return False

    def awake(self, processes: list[Process], own_pids: set[int]) -> set[Path]:
        """The groups that must not be frozen: see above. `own_pids` are those of `own_pids()`."""
        groups = {self._root}
        for process in processes:
            is_system = USER_SLICE not in process.group.parts
            if process.pid in own_pids or (is_system and process.name in AWAKE_PROGRAMS):
                groups.add(process.group)
        above = {folder for group in groups for folder in group.parents if folder.is_relative_to(self._root)}
        return groups | above

    def with_swap(self, processes: list[Process], awake: set[Path]) -> list[Path]:
        """The groups that can be frozen and have processes with something in swap."""
        members: dict[Path, list[Process]] = {}
        for process in processes:
            group = _domain(process.group)
            if group not in awake:
                members.setdefault(group, []).append(process)
        return [
            group
            for group, inside in sorted(members.items())
            if self.has_swap(group) or any(map(self.swapped_kib, inside))
        ]

    def to_park(self, processes: list[Process], own_pids: set[int]) -> list[Process]:
        """Who has something in swap and lies beside somebody who must go on: in the root, or a
        group of `own_pids`."""
        shared = {self._root, *(process.group for process in processes if process.pid in own_pids)}
        return [
            process
            for process in processes
            if process.group in shared
            and process.pid not in own_pids
            and process.name not in AWAKE_PROGRAMS
            and self.swapped_kib(process)
        ]


def own_pids(processes: list[Process], own_pid: int, keeper_pids: set[int]) -> set[int]:
    """Init, this process with its ancestors, and the keepers with their servers."""
    parents = {process.pid: process.parent_pid for process in processes}
    own = {1, *(process.pid for process in processes if keeper_pids & {process.pid, process.session})}
    pid = own_pid
    while pid > 1:
        own.add(pid)
        pid = parents.get(pid, 0)
    return own


def _domain(group: Path) -> Path:
    """The group of all threads of the processes in it: libvirt puts those of a virtual machine into
    several."""
    with contextlib.suppress(OSError):
        while (group / "cgroup.type").read_text() == "threaded\n":
            group = group.parent
    return group


def is_frozen(group: Path) -> bool:
    """Whether all in it are; True if it is gone."""
    return _events(group).get("frozen", "1") == "1"


def is_asked_to_freeze(group: Path) -> bool:
    """Be it by us or by somebody else; True if it is gone."""
    try:
        return (group / "cgroup.freeze").read_text().strip() == "1"
    except OSError:
        return True


def freeze(group: Path) -> None:
    """Ask for it; a group that is gone needs none."""
    with contextlib.suppress(FileNotFoundError, OSError):
        (group / "cgroup.freeze").write_text("1")


def _events(group: Path) -> dict[str, str]:
    try:
        words = (group / "cgroup.events").read_text().split()
    except OSError:
        return {}
    return dict(zip(words[::2], words[1::2], strict=False))


def park(process: Process) -> Path:
    """Move a process into the group of ours below its own; that group. Raises `OSError`."""
    group = process.group / PARKED
    group.mkdir(exist_ok=True)
    (group / "cgroup.procs").write_text(str(process.pid))
    return group


def unpark(root: Path) -> None:
    """Move back whoever is parked, wherever that is, and remove those groups. They are thawed by
    now."""
    for folder, names, _files in os.walk(root):
        if PARKED not in names:
            continue
        names.remove(PARKED)
        group = Path(folder) / PARKED
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (group.parent / "cgroup.procs").write_text(pid)
            group.rmdir()
