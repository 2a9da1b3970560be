"""In the guest: one swap area of each kind, on for the length of a block, and what it takes of the
guest's memory.

zram, zswap and a plain disk are set up as their documentation has it, with the fastest settings
that it names: Documentation/admin-guide/blockdev/zram.rst and mm/zswap.rst of Linux 6.1.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcache.bench.served import running
from zcache.control.ask import ask
from zcache.errors import SwapError
from zcache.keeper.state import StateFolder
from zcache.swap import area, nbd_device
from zcache.swap.buildup import Options
from zcache.swap.up import swap_area
from zcache.testvm.guest import swap_on

#: The guest's disks: the pages to work with; what is swapped to, where that is a disk.
PAGES: Final = Path("/dev/disk/by-id/virtio-vmdisk0")
DISK: Final = Path("/dev/disk/by-id/virtio-vmdisk1")
MIB: Final = 1 << 20
_ZSWAP: Final = Path("/sys/module/zswap/parameters")
_ZSWAP_FIGURES: Final = Path("/sys/kernel/debug/zswap")
_ZRAM: Final = Path("/sys/block/zram0")


@dataclass(frozen=True)
class Use:
    """What a swap area holds, and in how much of the guest's memory besides what it took at its
    start; a page that is on a disk only is not held."""

    pages: int
    memory_bytes: int


@dataclass(frozen=True)
class Sizes:
    """Of the swap area, and of the memory that it may have, where that can be said."""

    size_mib: int
    budget_mib: int
    memory_mib: int


Area = Callable[[Sizes], AbstractContextManager[Callable[[], Use | None]]]


@contextlib.contextmanager
def zcache(sizes: Sizes) -> Iterator[Callable[[], Use | None]]:
    """zcache inside the guest, with what does not fit in its budget on the disk."""
    parameters = (f"size={sizes.size_mib}M", f"budget={sizes.budget_mib}M", f"backing={DISK}", "hardening=require")
    with swap_area(Options(parameters=parameters)):

        def use() -> Use:
            status = ask(StateFolder().control, "status")
            return Use(status["stored_pages"], 0)

        yield use


@contextlib.contextmanager
def memory(sizes: Sizes) -> Iterator[Callable[[], Use | None]]:
    """nbdkit's memory plugin inside the guest, attached as zcache is: all its memory is there and
    locked before."""
    area.run(["modprobe", "nbd"])
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        socket = folder / "socket"
        words = ["nbdkit", "--foreground", "--threads=1", f"--unix={socket}", "memory", f"{sizes.size_mib}M"]
        undo.enter_context(running([*words, "allocator=malloc,mlock=true"], folder / "log", socket.exists))
        device = nbd_device.attach(socket, False, 0)
        undo.callback(device.detach, 10)
        swap_on(Path(device.path), undo)
        yield lambda: None


def zram(algorithm: str) -> Area:
    """The kernel's compressed block device in memory."""

    @contextlib.contextmanager
    def on(sizes: Sizes) -> Iterator[Callable[[], Use | None]]:
        area.run(["modprobe", "zram"])
        (_ZRAM / "comp_algorithm").write_text(algorithm)
        (_ZRAM / "disksize").write_text(str(sizes.size_mib * MIB))
        with ExitStack() as undo:
            swap_on(Path("/dev/zram0"), undo)

            def use() -> Use:
                original, _, used, *_ = map(int, (_ZRAM / "mm_stat").read_text().split())
                return Use(original >> 12, used)

            yield use

    return on


@contextlib.contextmanager
def zswap(sizes: Sizes) -> Iterator[Callable[[], Use | None]]:
    """The kernel's compressed cache before a swap disk: lz4, and of its pools the densest that
    writes back in 6.1."""
    area.run(["modprobe", "z3fold"])
    percent = sizes.budget_mib * 100 // sizes.memory_mib
    for name, value in (("compressor", "lz4"), ("zpool", "z3fold"), ("max_pool_percent", percent), ("enabled", 1)):
        (_ZSWAP / name).write_text(str(value))
    with contextlib.suppress(SwapError):  # it is mounted
        area.run(["mount", "-t", "debugfs", "none", "/sys/kernel/debug"])
    with disk(sizes):

        def use() -> Use:
            figures = {name: int((_ZSWAP_FIGURES / name).read_text()) for name in ("stored_pages", "pool_total_size")}
            return Use(figures["stored_pages"], figures["pool_total_size"])

        yield use


@contextlib.contextmanager
def disk(_sizes: Sizes) -> Iterator[Callable[[], Use | None]]:
    """A plain one."""
    with ExitStack() as undo:
        swap_on(DISK.resolve(), undo)
        yield lambda: None


@contextlib.contextmanager
def host(_sizes: Sizes) -> Iterator[Callable[[], Use | None]]:
    """It is outside, and on already."""
    yield lambda: None


AREAS: Final[dict[str, Area]] = {
    "zcache": zcache,
    "memory": memory,
    "zram-lz4": zram("lz4"),
    "zram-zstd": zram("zstd"),
    "zswap": zswap,
    "disk": disk,
    "host": host,
}
