"""Mounts, block devices and mappings, as the kernel shows them.

The mount of a descriptor is found by its number in /proc/self/fdinfo, for on btrfs and overlayfs
stat(2) names a device that no mount has; devices in sysfs; of which mappings a device-mapper device
is made by its ioctl(2). What cannot be looked at (no sysfs, no permission, a file of another mount
namespace) counts as not there.
"""

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

SECTOR_BYTES: Final = 512
#: A stack that is deeper than this is one that bites its tail.
MAX_DEPTH: Final = 16

#: ioctl(2)s and what they take, the same on x86-64 and arm64: linux/dm-ioctl.h.
_DM_TABLE_STATUS: Final = 0xC138FD0C
_DM_STATUS_TABLE: Final = 1 << 4
_DM_HEADER: Final = struct.Struct("=6Ii3IQ128s129s7x")
_DM_TARGET: Final = struct.Struct("=2QiI16s")


class Mount(NamedTuple):
    """Where a file lies: the type of the file system, and the device that it is on, if it is on
    one."""

    file_system: str
    device: int | None


def mount_of(descriptor: int, depth: int = 0) -> Mount:
    """Of a file; for what lies on overlayfs, that of its upper layer, if that can be seen from
    here."""
    fields = _mount_fields(descriptor)
    if not fields:
        return Mount("", None)
    dash = fields.index("-")
    file_system, source, options = fields[dash + 1 : dash + 4]
    major, minor = map(int, fields[2].split(":"))
    mount = Mount(file_system, os.makedev(major, minor) if major else _device_at(_unescaped(source)))
    upper = [word.removeprefix("upperdir=") for word in options.split(",") if word.startswith("upperdir=")]
    if file_system != "overlay" or not upper or depth > MAX_DEPTH:
        return mount
    try:
        descriptor = os.open(_unescaped(upper[0]), os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return mount
    try:
        return mount_of(descriptor, depth + 1)
    finally:
        os.close(descriptor)


def read_line(path: Path) -> str:
    """A line of sysfs; "" if it is not there."""
    try:
        return path.read_text(errors="surrogateescape").removesuffix("\n")
    except OSError:
        return ""


def status_at(path: Path) -> os.stat_result | None:
    """None if it is not there."""
    try:
        return path.stat()
    except OSError:
        return None


def folder_of(number: int, whole: bool = True) -> Path | None:
    """A block device's folder in sysfs; of a partition, with `whole`, that of its disk."""
    link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not link.exists():
        return None
    folder = link.resolve()
    return folder.parent if whole and (folder / "partition").exists() else folder


def slaves_of(folder: Path) -> Iterator[int]:
    """The devices that a mapping, or an array, is made of."""
    for slave in sorted(folder.glob("slaves/*")):
        major, colon, minor = read_line(slave / "dev").partition(":")
        if colon:
            yield os.makedev(int(major), int(minor))


def transports_of(folder: Path) -> Iterator[Path]:
    """Of an NVMe disk: how its controllers are reached."""
    yield folder / "device/transport"
    yield from folder.glob("device/nvme*/transport")


def _device_at(source: str) -> int | None:
    """Of a mount's source, as btrfs has it, which gives each of its trees a number of its own."""
    status = status_at(Path(source)) if source.startswith("/") else None
    return status.st_rdev if status and stat.S_ISBLK(status.st_mode) else None


def _mount_fields(descriptor: int) -> list[str]:
    """The line of a descriptor's mount: proc(5), mountinfo."""
    numbers = [
        line.split()[1] for line in read_line(Path(f"/proc/self/fdinfo/{descriptor}")).splitlines() if "mnt_id" in line
    ]
    for line in read_line(Path("/proc/self/mountinfo")).splitlines():
        fields = line.split()
        if fields[:1] == numbers:
            return fields
    return []


def _unescaped(text: str) -> str:
    """Blanks and the like stand there as \\040."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        text = text.replace(code, chr(int(code[1:], 8)))
    return text


def targets_of(number: int) -> set[str]:
    """The kinds of mapping that a device of device-mapper is made of; none for any other, or if we
    may not ask."""
    if not Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/dm").exists():
        return set()
    request = bytearray(16384)
    encoded = (os.minor(number) & 0xFF) | os.major(number) << 8 | (os.minor(number) & ~0xFF) << 12
    version, sizes, flags = (4, 0, 0), (len(request), _DM_HEADER.size), _DM_STATUS_TABLE
    _DM_HEADER.pack_into(request, 0, *version, *sizes, 0, 0, flags, 0, 0, encoded, b"", b"")
    try:
        control = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return set()
    try:
        fcntl.ioctl(control, _DM_TABLE_STATUS, request)
    except OSError:
        return set()
    finally:
        os.close(control)
    start, count = struct.unpack_from("=2I", request, 16)
    kinds, at = set(), start
    for _ in range(count):
        _, _, _, following, kind = _DM_TARGET.unpack_from(request, at)
        kinds.add(kind.partition(b"\0")[0].decode(errors="replace"))
        at = start + following
    return kinds
