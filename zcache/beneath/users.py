"""Who else has the blocks of a file or device, by a way that the lock on it does not reach: a loop
device over it, or beside the one that it is, or the file beneath that one.

Of two that begin at the same time at least one sees the other, for each asks when it has its own
lock.
"""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zcache.beneath.lookup import MAX_DEPTH, SECTOR_BYTES, folder_of, read_line, slaves_of, status_at

#: linux/loop.h: an ioctl(2), and the size of what it fills.
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO64_BYTES: Final = 232


class _Blocks(NamedTuple):
    """A range of bytes of a regular file or block device; `loop` is the loop device through which
    they are reached."""

    key: tuple[int, int]
    start: int
    stop: int
    path: Path | None = None
    loop: str = ""


class _Loop(NamedTuple):
    """One that is bound."""

    name: str
    key: tuple[int, int]
    start: int
    stop: int
    path: Path


def used_otherwise(descriptor: int, read_only: bool = False) -> str:
    """Who else has the blocks that lie beneath a file or device, in words that follow its path; ""
    if nobody has.

    Call it with the own lock held: of two that begin at the same time at least one sees the other.
    With `read_only`, others may read, too.
    """
    status = os.fstat(descriptor)
    size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
    loops = list(_loops())
    parts = [_Blocks(_key(status), 0, size_bytes)]
    if stat.S_ISBLK(status.st_mode):
        parts += _blocks_of_device(status.st_rdev, 0, size_bytes, loops, 0)
    for blocks in parts:
        below = (
            f"is on /dev/{blocks.loop}, whose file {blocks.path or ''} is".replace("  ", " ") if blocks.loop else "is"
        )
        if blocks.path and _is_held(blocks.path, read_only):
            return f"{below} held by another server, or another program"
        for loop in loops:
            if loop.key == blocks.key and loop.name != blocks.loop and _overlap(loop, blocks):
                is_harmless = read_only and read_line(Path(f"/sys/block/{loop.name}/ro")) == "1"
                if not is_harmless and _is_in_use(f"/dev/{loop.name}"):
                    return f"{below} below /dev/{loop.name}, which is in use"
    return ""


def _blocks_of_device(number: int, start: int, stop: int, loops: list[_Loop], depth: int) -> Iterator[_Blocks]:
    """Beneath a device; of those beneath a mapping, whole devices, for it is not known which
    part."""
    folder = folder_of(number, whole=False)
    if folder is None or depth > MAX_DEPTH:
        return
    if (folder / "partition").exists():
        first = int(read_line(folder / "start") or 0) * SECTOR_BYTES
        start, stop, folder = start + first, stop + first, folder.parent
    for loop in loops:
        if loop.name == folder.name:
            found = status_at(loop.path)
            inner_start, inner_stop = loop.start + start, min(loop.start + stop, loop.stop)
            is_it = found is not None and _key(found) == loop.key
            yield _Blocks(loop.key, inner_start, inner_stop, loop.path if is_it else None, loop.name)
            if found is not None and is_it and stat.S_ISBLK(found.st_mode):
                yield from _blocks_of_device(found.st_rdev, inner_start, inner_stop, loops, depth + 1)
    for slave in slaves_of(folder):
        yield from _blocks_of_device(slave, 0, 1 << 63, loops, depth + 1)


def _loops() -> Iterator[_Loop]:
    for folder in Path("/sys/block").glob("loop*/loop"):
        name = folder.parent.name
        path = Path(read_line(folder / "backing_file"))
        key = _loop_key(name)
        if key is None:
            status = status_at(path)
            if status is None:
                continue
            key = _key(status)
        start = int(read_line(folder / "offset") or 0)
        size = int(read_line(folder.parent / "size") or 0) * SECTOR_BYTES
        yield _Loop(name, key, start, start + size, path)


def _loop_key(name: str) -> tuple[int, int] | None:
    """What is below it, whatever its name is by now, or in which mount namespace; None if we may
    not look."""
    try:
        descriptor = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_BYTES))
    except OSError:  # just let go
        return None
    finally:
        os.close(descriptor)
    device, inode, special = struct.unpack_from("=3Q", answer)
    return (special, 0) if special else (device, inode)


def _key(status: os.stat_result) -> tuple[int, int]:
    """Of a file, or of what a device's name stands for."""
    return (status.st_rdev, 0) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)


def _overlap(loop: _Loop, blocks: _Blocks) -> bool:
    return loop.start < blocks.stop and blocks.start < loop.stop


def _is_held(path: Path, read_only: bool) -> bool:
    """Whether somebody else has the file below, or the device, as our own lock would have it."""
    try:
        if path.is_block_device():
            return _is_in_use(str(path))
        descriptor = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system that locks nothing
        return False
    finally:
        os.close(descriptor)
    return False


def _is_in_use(device: str) -> bool:
    """Mounted, swapped on, mapped, or held by a server. For want of permission to try it: yes."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno in (errno.EBUSY, errno.EACCES, errno.EPERM)
    return False
