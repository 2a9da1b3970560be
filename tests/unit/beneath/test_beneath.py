"""What lies beneath, as the kernel tells it; tests/nbd/test_beneath.py asks a real one."""

import fcntl
import os
import struct
from pathlib import Path

import pytest

from zcache.beneath import lookup, troubles
from zcache.beneath.lookup import Mount


def mounts(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """As proc(5) has them; a descriptor's mount is the one with its own number."""

    def read(path: Path) -> str:
        if path.parent.name == "fdinfo":
            return f"pos:\t0\nflags:\t02\nmnt_id:\t{path.name}\nino:\t7\n"
        return "\n".join(lines)

    monkeypatch.setattr(lookup, "read_line", read)


def test_a_mount_is_found_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two mounts of one device, and fields between that come and go."""
    mounts(
        monkeypatch,
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw",
        "22 21 8:2 / /mnt rw shared:1 master:2 - xfs /dev/sda2 rw",
        "23 21 0:40 / /nfs rw - nfs4 server:/ rw,vers=4.2",
    )
    assert lookup.mount_of(22) == Mount("xfs", os.makedev(8, 2))
    assert lookup.mount_of(23) == Mount("nfs4", None)
    assert lookup.mount_of(24) == Mount("", None)


def test_of_an_overlay_it_is_the_upper_layer_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    upper = tmp_path / "up per"
    upper.mkdir()
    descriptor = os.open(upper, os.O_PATH)
    escaped = str(upper).replace(" ", "\\040")
    lines = [
        f"1000 1 0:30 / / rw - overlay overlay rw,lowerdir=/l,upperdir={escaped},workdir=/w",
        *(f"{number} 1 8:2 / /mnt rw - xfs /dev/sda2 rw" for number in range(descriptor, descriptor + 20)),
        "1001 1 0:31 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/not/here,workdir=/w",
    ]
    os.close(descriptor)
    mounts(monkeypatch, *lines)
    assert lookup.mount_of(1000) == Mount("xfs", os.makedev(8, 2))
    assert lookup.mount_of(1001) == Mount("overlay", None)


@pytest.mark.parametrize(
    ("file_system", "said", "is_program"),
    [
        ("ext4", "", False),
        ("tmpfs", "is in memory (tmpfs)", False),
        ("nfs4", "takes a network", False),
        ("9p", "takes a network, or another machine", False),
        ("zfs", "writes to new blocks", False),
        ("fuse.sshfs", "is on FUSE (fuse.sshfs)", True),
        ("fuseblk", "is on FUSE (fuseblk)", True),
    ],
)
def test_file_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file_system: str, said: str, is_program: bool
) -> None:
    monkeypatch.setattr(troubles, "mount_of", lambda _descriptor: Mount(file_system, None))
    found = troubles.troubles_at(tmp_path / "not there yet")
    assert [trouble.is_program for trouble in found] == ([is_program] if said else [])
    assert not found or said in found[0].reason


def test_the_kinds_of_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """As linux/dm-ioctl.h has them; the test VM has real ones."""
    asked: list[tuple[int, ...]] = []

    def ioctl(_descriptor: int, call: int, request: bytearray) -> int:
        asked.append((call, *struct.unpack_from("=4I", request), *struct.unpack_from("=IQ", request, 28)[:1]))
        struct.pack_into("=2I", request, 16, 320, 2)
        struct.pack_into("=2QiI16s", request, 320, 0, 8, 0, 80, b"linear\0junk")
        struct.pack_into("=2QiI16s", request, 400, 8, 8, 0, 120, b"thin")
        return 0

    real_open = os.open
    monkeypatch.setattr(os, "open", lambda _path, flags: real_open("/dev/null", flags))
    monkeypatch.setattr(Path, "exists", lambda _path: True)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert lookup.targets_of(os.makedev(254, 3)) == {"linear", "thin"}
    assert asked == [(0xC138FD0C, 4, 0, 0, 16384, 1 << 4)]
