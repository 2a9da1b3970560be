"""Images, devices and file systems in a folder, made with real tools: each is gone when its
`ExitStack` is closed.

An image is allocated in full, and stays so (nothing is discarded, or zeroed later), and is reached
by a loop device that goes past the page cache, or zcache would warn of that in every row. Raises
`EnvironmentProblem` where a tool or the kernel lacks something.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from zcache.errors import EnvironmentProblem
from zcache.tiers.backing_file import BackingFile

MIB: Final = 1 << 20
#: What mkfs.xfs asks for at least.
IMAGE_MIB: Final = 320
SECONDS: Final = 120

#: The Debian package of each tool.
PACKAGES: Final = {
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.vfat": "dosfstools",
    "mkfs.exfat": "exfatprogs",
    "fuse2fs": "fuse2fs",
    "cryptsetup": "cryptsetup-bin",
    "lvm": "lvm2",
    "dmsetup": "dmsetup",
    "mke2fs": "e2fsprogs",
}


class Bench:
    """Makes things in a folder, and undoes them."""

    def __init__(self, folder: Path, undo: ExitStack, backing_mib: int) -> None:
        self.folder = folder
        self._undo = undo
        self.backing_mib = backing_mib
        self._numbers = iter(range(1000))

    def run(self, *words: object) -> str:
        """What a command prints. It is found where only root looks, too."""
        command = [str(word) for word in words]
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        if shutil.which(command[0], path=path) is None:
            raise EnvironmentProblem(f"no {command[0]}: apt-get install {PACKAGES.get(command[0], command[0])}")
        # Nodes are made at once, by who makes the device; there may be no udev.
        environment = {**os.environ, "PATH": path, "DM_DISABLE_UDEV": "1", "LVM_SUPPRESS_FD_WARNINGS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment)
        if done.returncode:
            lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            why = next((line for line in lines if "dmesg(1)" not in line), f"status {done.returncode}")
            raise EnvironmentProblem(f"{Path(command[0]).name}: {why}")
        return done.stdout.strip()

    def undo(self, *words: object) -> None:
        """A command for the end, whatever it says."""

        def last() -> None:
            with contextlib.suppress(EnvironmentProblem):
                self.run(*words)

        self._undo.callback(last)

    def image(self, mib: int = IMAGE_MIB, is_sparse: bool = False, folder: Path | None = None) -> Path:
        """A file of zeros."""
        path = (folder or self.folder) / f"image{next(self._numbers)}"
        self._undo.callback(path.unlink, missing_ok=True)
        with path.open("wb") as file:
            if is_sparse:
                file.truncate(mib * MIB)
            else:
                os.posix_fallocate(file.fileno(), 0, mib * MIB)
        return path

    def loop(self, image: Path, *options: str, is_direct: bool = True) -> Path:
        """A loop device over it."""
        self.load("loop")
        words = [*options, "--direct-io=on"] if is_direct else options
        device = self.run("losetup", "--find", "--show", *words, image)
        self.undo("losetup", "--detach", device)
        return Path(device)

    def disk(self, mib: int = IMAGE_MIB) -> Path:
        """As good as a real one."""
        return self.loop(self.image(mib))

    def load(self, module: str) -> None:
        """A kernel module; a kernel that has it built in, or not at all, shows later."""
        with contextlib.suppress(EnvironmentProblem):
            self.run("modprobe", "-q", module)

    def mounted(self, device: Path | str, kind: str, options: str = "") -> Path:
        """Where it is mounted."""
        folder = self.folder / f"mount{next(self._numbers)}"
        folder.mkdir()
        self._undo.callback(folder.rmdir)
        self.run("mount", "-t", kind, *(["-o", options] if options else []), device, folder)
        self.undo("umount", "--lazy", folder)  # a test that has failed may hold it
        return folder

    def made(self, kind: str, make: tuple[str, ...], options: str = "") -> Path:
        """A new file system's folder."""
        disk = self.disk()
        self.run(*make, disk)
        return self.mounted(disk, kind, options)

    def leftover(self, folder: Path) -> Path:
        """A backing file that a server has left."""
        path = folder / "swap"
        size_bytes = self.backing_mib * MIB
        BackingFile.open(
            path, needed_bytes=size_bytes, new_bytes=size_bytes, frame_bytes=65536, force=False, tell=lambda _line: None
        ).close()
        with path.open("r+b") as file:
            file.seek(65536)
            for _ in range(self.backing_mib):
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())
        return path


def neighbour(folder: Path) -> Callable[[], None]:
    """Fills a file system with what does not compress, to its last block."""

    def fill() -> None:
        noise = os.urandom(MIB)
        descriptor = os.open(folder / "neighbour", os.O_WRONLY | os.O_CREAT)
        try:
            for length in (MIB, 4096):
                with contextlib.suppress(OSError):
                    while os.write(descriptor, noise[:length]) == length:
                        pass
                with contextlib.suppress(OSError):
                    os.fsync(descriptor)
        finally:
            os.close(descriptor)

    return fill
