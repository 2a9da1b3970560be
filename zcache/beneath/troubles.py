"""What of all that lies beneath a file or block device is no good place for swap.

A page is written because memory is short. What needs a program for that, a network, memory or new
room may wait for what only the write can bring about, or fail when the disk is full.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zcache.beneath.lookup import (
    MAX_DEPTH,
    SECTOR_BYTES,
    folder_of,
    mount_of,
    read_line,
    slaves_of,
    targets_of,
    transports_of,
)
from zcache.beneath.own_blocks import writes_to_new_blocks

#: File systems that are memory.
_IN_MEMORY: Final = frozenset({"devtmpfs", "ramfs", "tmpfs"})
#: File systems whose transfers outlive the process that asked for them, and the beginnings of the
#: names of others.
_REMOTE: Final = frozenset({"9p", "afs", "ceph", "cifs", "coda", "lustre", "orangefs", "smb3", "virtiofs"})
#: That write to new blocks, and cannot be told not to.
_WRITES_ANEW: Final = frozenset({"bcachefs", "nilfs2", "zfs"})
#: By the beginning of a device's name.
_DEVICES: Final = {
    "zram": "is memory",
    "ram": "is memory",
    "nbd": "takes a network or another program to be written",
    "rbd": "takes a network to be written",
    "drbd": "takes a network to be written",
}
#: By the target type of device-mapper.
_TARGETS: Final = {
    "thin": "is in a thin pool, which may run full",
    "snapshot": "is a snapshot, which may run full",
    "snapshot-origin": "has a snapshot, which may run full",
    "vdo": "is in a VDO volume, which may run full",
}


class Trouble(NamedTuple):
    """What is wrong with something beneath, in words that follow a path; `is_program`: a program
    has to write it, which may itself be swapped out."""

    reason: str
    is_program: bool = False


def troubles_at(path: Path) -> list[Trouble]:
    """Of what is there, or of a file that will be made there. Raises `OSError`."""
    descriptor = os.open(path if path.exists() else path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        return troubles(descriptor)
    finally:
        os.close(descriptor)


def troubles(descriptor: int) -> list[Trouble]:
    """Of a file or block device, and of all beneath."""
    status = os.fstat(descriptor)
    is_device = stat.S_ISBLK(status.st_mode)
    found = _of_device(status.st_rdev, 0) if is_device else _of_file(descriptor, 0)
    return list(dict.fromkeys(found))


def is_remote(file_system: str) -> bool:
    """Whether a transfer may outlive the process that asked for it."""
    return file_system in _REMOTE or file_system.startswith(("fuse", "nfs"))


def _of_file(descriptor: int, depth: int) -> Iterator[Trouble]:
    file_system, device = mount_of(descriptor)
    if file_system.startswith("fuse"):
        yield Trouble(f"is on FUSE ({file_system}): a program has to write it, whose own pages may be in it", True)
    elif is_remote(file_system):
        yield Trouble(f"is on {file_system}: it takes a network, or another machine, to be written")
    elif file_system in _IN_MEMORY:
        yield Trouble(f"is in memory ({file_system}), which can itself be swapped out")
    elif file_system in _WRITES_ANEW:
        yield Trouble(f"is on {file_system}, which writes to new blocks, and fails when there are none")
    if device is not None and depth < MAX_DEPTH:
        yield from _of_device(device, depth + 1)


def _of_device(number: int, depth: int) -> Iterator[Trouble]:
    folder = folder_of(number)
    if folder is None or depth > MAX_DEPTH:
        return
    name = f"/dev/{folder.name}"
    kind = folder.name.rstrip("0123456789")
    if kind == "ublkb":
        yield Trouble(f"is on {name}: a program has to write it, whose own pages may be in it", True)
    if kind in _DEVICES:
        yield Trouble(f"is on {name}, which {_DEVICES[kind]}")
    if "/session" in str(folder) or any(read_line(path) in ("tcp", "rdma") for path in transports_of(folder)):
        yield Trouble(f"is on {name}, which takes a network to be written")
    for target in targets_of(number):
        if target in _TARGETS:
            yield Trouble(f"is on {name}, which {_TARGETS[target]}")
    below = read_line(folder / "loop/backing_file")
    if below:
        if read_line(folder / "loop/dio") != "1":
            yield Trouble(f"is on {name}, which takes memory to be written (losetup --direct-io=on helps)")
        yield from _of_loop(name, Path(below), depth)
    for slave in slaves_of(folder):
        yield from _of_device(slave, depth + 1)


def _of_loop(name: str, path: Path, depth: int) -> Iterator[Trouble]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # gone, or in another mount namespace
        return
    try:
        status = os.fstat(descriptor)
        if stat.S_ISBLK(status.st_mode):
            yield from _of_device(status.st_rdev, depth + 1)
            return
        for reason, is_program in _of_file(descriptor, depth + 1):
            yield Trouble(f"is on {name}, whose file {path} {reason}", is_program)
        if status.st_blocks * SECTOR_BYTES < status.st_size:
            yield Trouble(f"is on {name}, whose file {path} is not allocated in full: a full file system fails it")
        if writes_to_new_blocks(descriptor):
            yield Trouble(
                f"is on {name}, whose file {path} takes new blocks when it is written: a full file system fails it"
            )
    finally:
        os.close(descriptor)
