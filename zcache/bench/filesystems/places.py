"""Places for a backing, each made on a `Bench` (images.py), and gone with it."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from zcache.bench.filesystems.images import IMAGE_MIB, MIB, Bench, neighbour


class Place(NamedTuple):
    """A backing that is there or can be made, what fills the room beside it, and what the server
    has to be told."""

    backing: Path
    fill: Callable[[], None] = lambda: None
    words: tuple[str, ...] = ()


def on(folder: Path) -> Place:
    """A new file there."""
    return Place(folder / "swap", neighbour(folder))


def ext4(bench: Bench) -> Place:
    return on(bench.made("ext4", ("mke2fs", "-q", "-E", "nodiscard,lazy_itable_init=0", "-t", "ext4")))


def ext2(bench: Bench) -> Place:
    return on(bench.made("ext2", ("mke2fs", "-q", "-E", "nodiscard,lazy_itable_init=0", "-t", "ext2")))


def xfs(bench: Bench) -> Place:
    return on(bench.made("xfs", ("mkfs.xfs", "-q", "-K")))


def xfs_reflink(bench: Bench) -> Place:
    return _copied(bench, bench.made("xfs", ("mkfs.xfs", "-q", "-K")))


def btrfs(bench: Bench) -> Place:
    return on(bench.made("btrfs", ("mkfs.btrfs", "-q", "-K")))


def btrfs_compress(bench: Bench) -> Place:
    return on(bench.made("btrfs", ("mkfs.btrfs", "-q", "-K"), "compress-force=zstd"))


def btrfs_snapshot(bench: Bench) -> Place:
    folder = bench.made("btrfs", ("mkfs.btrfs", "-q", "-K"))
    bench.run("btrfs", "subvolume", "create", folder / "swaps")
    path = bench.leftover(folder / "swaps")
    bench.run("btrfs", "subvolume", "snapshot", folder / "swaps", folder / "snapshot")
    return Place(path, neighbour(folder))


def btrfs_leftover(bench: Bench) -> Place:
    """As an older zcache left it: copied on write."""
    folder = bench.made("btrfs", ("mkfs.btrfs", "-q", "-K"))
    noted = bench.leftover(folder)
    path = folder / "old"
    bench.run("cp", "--reflink=never", noted, path)
    noted.unlink()
    return Place(path, neighbour(folder))


def _copied(bench: Bench, folder: Path) -> Place:
    path = bench.leftover(folder)
    bench.run("cp", "--reflink=always", path, folder / "copy")
    return Place(path, neighbour(folder))


def tmpfs(bench: Bench) -> Place:
    return on(bench.mounted("tmpfs", "tmpfs", f"size={2 * bench.backing_mib}M"))


def _overlay(bench: Bench, upper: Path) -> Place:
    bench.load("overlay")
    (upper / "upper").mkdir()
    (upper / "work").mkdir()
    (bench.folder / "lower").mkdir(exist_ok=True)
    options = f"lowerdir={bench.folder / 'lower'},upperdir={upper / 'upper'},workdir={upper / 'work'}"
    return on(bench.mounted("overlay", "overlay", options))


def overlay_ext4(bench: Bench) -> Place:
    return _overlay(bench, bench.made("ext4", ("mke2fs", "-q", "-E", "nodiscard,lazy_itable_init=0", "-t", "ext4")))


def overlay_btrfs(bench: Bench) -> Place:
    return _overlay(bench, bench.made("btrfs", ("mkfs.btrfs", "-q", "-K")))


def fuse(bench: Bench) -> Place:
    bench.load("fuse")
    disk = bench.disk()
    bench.run("mke2fs", "-q", "-E", "nodiscard,lazy_itable_init=0", "-t", "ext4", disk)
    folder = bench.folder / "fuse"
    folder.mkdir(exist_ok=True)
    bench.run("fuse2fs", disk, folder, "-o", "fakeroot")
    bench.undo("umount", "--lazy", folder)
    return on(folder)


def vfat(bench: Bench) -> Place:
    return on(bench.made("vfat", ("mkfs.vfat", "-F", "32")))


def exfat(bench: Bench) -> Place:
    return on(bench.made("exfat", ("mkfs.exfat",)))


def _sectors(bench: Bench, sector_bytes: int) -> Place:
    return Place(bench.loop(bench.image(), "--sector-size", str(sector_bytes)))


def sectors_4k(bench: Bench) -> Place:
    return _sectors(bench, 4096)


def sectors_16k(bench: Bench) -> Place:
    return _sectors(bench, 16384)


def partition(bench: Bench) -> Place:
    """The second of two; the first has a file system that is mounted."""
    device = bench.loop(bench.image(2 * IMAGE_MIB), "--partscan")
    sectors = IMAGE_MIB * MIB // 512
    for number in (1, 2):
        bench.run("addpart", device, number, (number - 1) * sectors, sectors)
        bench.undo("delpart", device, number)
    bench.run("mke2fs", "-q", "-E", "nodiscard,lazy_itable_init=0", "-t", "ext4", f"{device}p1")
    bench.mounted(f"{device}p1", "ext4")
    return Place(Path(f"{device}p2"))


def loop_direct(bench: Bench) -> Place:
    folder = bench.made("ext4", ("mke2fs", "-q", "-E", "nodiscard,lazy_itable_init=0", "-t", "ext4"))
    return Place(bench.loop(bench.image(2 * bench.backing_mib, folder=folder)), neighbour(folder))


def loop_cached(bench: Bench) -> Place:
    folder = bench.made("ext4", ("mke2fs", "-q", "-E", "nodiscard,lazy_itable_init=0", "-t", "ext4"))
    return Place(bench.loop(bench.image(2 * bench.backing_mib, folder=folder), is_direct=False), neighbour(folder))


def loop_sparse(bench: Bench) -> Place:
    folder = bench.made("ext4", ("mke2fs", "-q", "-E", "nodiscard,lazy_itable_init=0", "-t", "ext4"))
    image = bench.image(2 * bench.backing_mib, is_sparse=True, folder=folder)
    return Place(bench.loop(image), neighbour(folder))


def loop_btrfs(bench: Bench) -> Place:
    folder = bench.made("btrfs", ("mkfs.btrfs", "-q", "-K"))
    return Place(bench.loop(bench.image(2 * bench.backing_mib, folder=folder)), neighbour(folder))


def _mapped(bench: Bench, name: str, table: str) -> Path:
    bench.load("dm_mod")
    bench.run("dmsetup", "create", name, "--table", table)
    bench.undo("dmsetup", "remove", "--retry", name)
    return Path("/dev/mapper") / name


def thin_pool(bench: Bench) -> Place:
    """Of 128 MiB, with two volumes that together are larger; a neighbour fills the second."""
    bench.load("dm_thin_pool")
    sectors = 128 * MIB // 512
    table = f"0 {sectors} thin-pool {bench.disk(16)} {bench.disk(128)} 128 0 1 error_if_no_space"
    pool = _mapped(bench, "zcache-pool", table)
    for number in (0, 1):
        bench.run("dmsetup", "message", pool, "0", f"create_thin {number}")
    volumes = [_mapped(bench, f"zcache-thin{number}", f"0 {sectors} thin {pool} {number}") for number in (0, 1)]

    def fill() -> None:
        with contextlib.suppress(OSError), volumes[1].open("r+b", buffering=0) as file:
            while file.write(bytes(MIB)):
                os.fsync(file.fileno())

    return Place(volumes[0], fill)


def luks(bench: Bench) -> Place:
    bench.load("dm_crypt")
    disk, key = bench.disk(), bench.folder / "key"
    key.write_bytes(os.urandom(32))
    fast = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    bench.run("cryptsetup", "luksFormat", "-q", "--type", "luks2", *fast, "--key-file", key, disk)
    bench.run("cryptsetup", "open", "--key-file", key, disk, "zcache-luks")
    bench.undo("cryptsetup", "close", "zcache-luks")
    return Place(Path("/dev/mapper/zcache-luks"), words=("force=yes",))  # it is not blank: zeros, deciphered, are noise


def lvm(bench: Bench) -> Place:
    bench.load("dm_mod")
    settings = (
        "--config",
        'devices { filter=["a|^/dev/loop|","r|.*|"] } activation { monitoring=0 udev_sync=0 udev_rules=0 } '
        "backup { backup=0 archive=0 } devices { use_devicesfile=0 }",
    )
    disk = bench.disk()
    bench.run("lvm", "pvcreate", "-q", *settings, disk)
    bench.run("lvm", "vgcreate", "-q", *settings, "zcachetest", disk)
    bench.run("lvm", "lvcreate", "-q", "-y", "-Wn", "-Zn", *settings, "-n", "swap", "-l", "100%FREE", "zcachetest")
    bench.undo("lvm", "vgremove", "-q", "-f", *settings, "zcachetest")
    return Place(Path("/dev/mapper/zcachetest-swap"))


PLACES: Final = {
    "ext4": ext4,
    "ext2 (no fallocate)": ext2,
    "xfs": xfs,
    "xfs, reflinked": xfs_reflink,
    "btrfs": btrfs,
    "btrfs, compress": btrfs_compress,
    "btrfs, copied on write": btrfs_leftover,
    "btrfs, snapshot": btrfs_snapshot,
    "tmpfs": tmpfs,
    "overlay on ext4": overlay_ext4,
    "overlay on btrfs": overlay_btrfs,
    "FUSE (fuse2fs)": fuse,
    "vfat": vfat,
    "exfat": exfat,
    "sectors of 4 KiB": sectors_4k,
    "sectors of 16 KiB": sectors_16k,
    "partition": partition,
    "loop, direct": loop_direct,
    "loop, page cache": loop_cached,
    "loop, sparse file": loop_sparse,
    "loop, file on btrfs": loop_btrfs,
    "thin pool": thin_pool,
    "LUKS": luks,
    "LVM": lvm,
}
