"""Disk files that fail, and clean disks over them."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from tests.support.stores import small_store
from zcache.clean.clean_disk import CleanDisk
from zcache.clean.disk_file import DiskFile
from zcache.pages.tmem import Kind
from zcache.store.store import Store


def error() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


class FaultyDiskFile(DiskFile):
    """Fails where it is told to; `before_read`, `after_read` and `before_write` are called around
    its transfers, by the thread that asked for them."""

    rng: random.Random | None = None  # with it, a write that fails has moved some of its bytes
    before_read: Callable[[], None] = staticmethod(lambda: None)
    after_read: Callable[[], None] = staticmethod(lambda: None)
    before_write: Callable[[], None] = staticmethod(lambda: None)
    after_write: Callable[[], None] = staticmethod(lambda: None)
    failing_reads = failing_writes = failing_flushes = 0
    reads = 0

    def read(self, offset: int, out: memoryview) -> None:
        self.before_read()
        self.reads += 1
        if self.failing_reads:
            self.failing_reads -= 1
            raise error()
        super().read(offset, out)
        self.after_read()

    def write(self, offset: int, data: memoryview) -> None:
        self.before_write()
        if self.failing_writes:
            self.failing_writes -= 1
            if self.rng:
                super().write(offset, data[: self.rng.randrange(len(data) + 1)])
            raise error()
        super().write(offset, data)
        self.after_write()

    def flush(self) -> None:
        if self.failing_flushes:
            self.failing_flushes -= 1
            raise error()
        super().flush()


def clean_disk(
    path: Path, store: Store | None = None, read_only: bool = False, content: bytes | None = None
) -> tuple[CleanDisk, FaultyDiskFile]:
    """Over a file with that content, or as it is."""
    if content is not None:
        path.write_bytes(content)
    store = store or small_store(64)
    pool = next((pool for pool in store.tmem.pools.values() if pool.kind is Kind.EPHEMERAL), None)
    file = FaultyDiskFile.open(path, read_only)
    assert isinstance(file, FaultyDiskFile)
    return CleanDisk(path.name, file, read_only, store, pool or store.tmem.new_pool(Kind.EPHEMERAL)), file


def read(disk: CleanDisk, offset: int, length: int) -> bytes:
    out = bytearray(length)
    with memoryview(out) as view:
        disk.read(offset, view)
    return bytes(out)
