"""Limits of the control groups that this process is in: on memory and on tasks, of its own group
and of each above it.

Version 2 and version 1 alike; in a container, too, whose own group is all that is mounted:
/proc/self/mountinfo says where that is. What a group leaves of its memory is its limit less what is
used, but for file cache, which the kernel takes back first; and the least of all groups is what
counts (Documentation/admin-guide/cgroup-v2.rst, "Memory"; cgroup-v1/memory.rst). Past `memory.high`
nothing is killed, but whoever takes memory is made to wait, for seconds: it is a limit, too. So is
version 1's on memory and swap together: what is locked is never swapped.

Unlike the machine, a group has no reserve for whoever may do no I/O to get memory, as the server
may not: at its limit the kernel's OOM killer ends something in it, at once.

A server gives up the file system. So the files are opened once, and read through their descriptors.
A group that it is moved to later is not seen.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zcache.linux import meminfo

OWN: Final = Path("/proc/self/cgroup")
MOUNTS: Final = Path("/proc/self/mountinfo")

#: Version 1 writes none as the largest multiple of a page.
_NO_LIMIT: Final = 1 << 62

#: A limit, and what counts towards it.
_MEMORY: Final = {
    2: (("memory.max", "memory.current"), ("memory.high", "memory.current")),
    1: (
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
    ),
}
#: File cache, all groups below with it.
_CACHE: Final = {
    2: re.compile(rb"^(?:in)?active_file (\d+)", re.MULTILINE),
    1: re.compile(rb"^total_(?:in)?active_file (\d+)", re.MULTILINE),
}
_STAT_BYTES: Final = 1 << 16


class Room(NamedTuple):
    """What a limit leaves now."""

    limit: int  # bytes, or tasks
    available: int
    name: str  # of the file, with its path

    def in_words(self) -> str:
        """Of a limit on memory: what it is, and where."""
        return f"{self.name} is {self.limit >> 20} MiB"


class GroupLimits:
    """On the memory of the groups of this process; `own` and `mounts` are files of /proc. Nothing
    fails here: a group that cannot be read has no limits."""

    def __init__(self, own: Path = OWN, mounts: Path = MOUNTS) -> None:
        self._limits: list[_Limit] = []
        for version, group in _groups("memory", own, mounts):
            for limit, usage in _MEMORY[version]:
                self._add(version, group / limit, group / usage, group / "memory.stat")

    def _add(self, version: int, *paths: Path) -> None:
        descriptors: list[int] = []
        try:
            for path in paths:
                descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:  # the root of all groups has none
            _close(descriptors)
        else:
            self._limits.append(_Limit(str(paths[0]), version, *descriptors))

    def rooms(self) -> tuple[Room, ...]:
        """What each limit leaves; of those only that there are."""
        found = []
        for limit in self._limits:
            with contextlib.suppress(OSError, ValueError):  # the group is gone, or its controller
                room = limit.room()
                if room:
                    found.append(room)
        return tuple(found)

    def close(self) -> None:
        """Nothing is asked afterwards."""
        for limit in self._limits:
            _close([limit.limit, limit.usage, limit.stat])
        self._limits.clear()


class _Limit(NamedTuple):
    """With the descriptors of its files."""

    name: str
    version: int
    limit: int
    usage: int
    stat: int

    def room(self) -> Room | None:
        text = os.pread(self.limit, 32, 0)
        if text == b"max\n" or int(text) >= _NO_LIMIT:
            return None
        used = int(os.pread(self.usage, 32, 0))
        cache = sum(map(int, _CACHE[self.version].findall(os.pread(self.stat, _STAT_BYTES, 0))))
        return Room(int(text), max(int(text) - max(used - cache, 0), 0), self.name)


def rooms() -> tuple[Room, ...]:
    """What the limits on this process's memory leave, asked once."""
    groups = GroupLimits()
    try:
        return groups.rooms()
    finally:
        groups.close()


def ram_bytes(rooms: Iterable[Room]) -> int:
    """How much RAM there is: the machine's, or the least limit."""
    return min([meminfo.read_bytes("MemTotal"), *(room.limit for room in rooms)])


def least_tasks(own: Path = OWN, mounts: Path = MOUNTS) -> Room | None:
    """How many processes and threads more there can be, by the group that leaves the fewest; None:
    as many as one likes."""
    rooms = []
    for _version, group in _groups("pids", own, mounts):
        with contextlib.suppress(OSError, ValueError):
            limit = (group / "pids.max").read_text().strip()
            if limit != "max":
                used = int((group / "pids.current").read_text())
                rooms.append(Room(int(limit), max(int(limit) - used, 0), str(group / "pids.max")))
    return min(rooms, key=lambda room: room.available, default=None)


def _groups(controller: str, own: Path, mounts: Path) -> Iterator[tuple[int, Path]]:
    """The versions and folders of the groups that this process is in, its own first, as far up as
    they can be seen."""
    try:
        # A path may be of any bytes, and somebody may mount there at any time.
        lines, mounted = (file.read_text(errors="surrogateescape").splitlines() for file in (own, mounts))
    except OSError:
        return
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if version == 2 or controller in controllers.split(","):
            top, group = _place(version, controller, path, mounted)
            while top and group:
                yield version, group
                if group == top:
                    break
                group = group.parent


def _place(version: int, controller: str, path: str, mounted: list[str]) -> tuple[Path | None, Path | None]:
    """Where the hierarchy is mounted, and the group in it. One that lies outside of all that is
    mounted (a container that shows its own group as the root) is taken to be that root."""
    path = path.removesuffix(" (deleted)")
    outside: Path | None = None
    for line in mounted:
        before, _, after = line.partition(" - ")
        root, point = (_unescaped(field) for field in before.split(" ")[3:5])
        kind, _source, options = after.split(" ", 2)
        if kind == "cgroup2" if version == 2 else kind == "cgroup" and controller in options.split(","):
            top = Path(point)
            if ".." not in Path(path).parts and Path(path).is_relative_to(root):
                return top, top / Path(path).relative_to(root)
            outside = outside or top
    return outside, outside


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
