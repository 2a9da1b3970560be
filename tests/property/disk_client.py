"""A client of a clean disk: what it reads is what is in the file, and what it wrote is there.

The file is its own model: whatever fails, and whoever writes in the middle of a read, the file says
what is right. Only a read in the middle of which something was changed has more than one right
answer, and is not compared.
"""

import os
import random
from collections import deque
from typing import Final

from tests.support.disks import FaultyDiskFile
from tests.support.pages import any_page
from zcache.clean.clean_disk import CleanDisk
from zcache.pages.tmem import Pool
from zcache.store.store import Store

MAX_BYTES: Final = 40 * 4096


class DiskClient:
    """Has a disk of its own, in memory."""

    def __init__(self, store: Store, pool: Pool, rng: random.Random) -> None:
        self.rng = rng
        self.size = rng.randrange(1, MAX_BYTES)
        self._descriptor = os.memfd_create("zcache-test-disk", os.MFD_CLOEXEC)
        os.pwrite(self._descriptor, b"".join(any_page(rng) for _ in range(40))[: self.size], 0)
        self.operations = 0
        self.log: deque[tuple[object, ...]] = deque(maxlen=40)
        self._changes = 0
        self.go_on(store, pool)

    def go_on(self, store: Store, pool: Pool) -> None:
        """With a new server."""
        file = FaultyDiskFile.adopt(os.dup(self._descriptor))
        assert isinstance(file, FaultyDiskFile)
        self.file, file.rng = file, self.rng
        self.store = store
        self.disk = CleanDisk("disk", file, False, store, pool)

    def act(self) -> None:
        """One operation."""
        rng = self.rng
        self.operations += 1
        unit = rng.choice([1, 512, 4096, 4096, 4096])
        offset = min(rng.randrange(-(-self.size // unit)) * unit, self.size - 1)
        length = min(rng.randrange(1, max(rng.choice([1, 9000, 70_000]) // unit, 1) + 1) * unit, self.size - offset)
        what = rng.choice(["read"] * 8 + ["write", "write", "zero", "trim", "flush", "fail"])
        self.log.append((what, offset, length))
        try:
            match what:
                case "read":
                    self._read(offset, length)
                case "write":
                    self._write(offset, length)
                case "zero":
                    self._changes += 1
                    self.disk.zero(offset, length, rng.random() < 0.5, rng.random() < 0.5)
                case "trim":
                    self._changes += 1
                    self.disk.trim(offset, length)
                case "flush":
                    self.disk.flush()
                case "fail":
                    setattr(self.file, rng.choice(["failing_reads", "failing_writes", "failing_flushes"]), 1)
        except OSError as error:
            assert error.strerror == "Input/output error", error

    meanwhile = act

    def _read(self, offset: int, length: int) -> None:
        out, changes = bytearray(length), self._changes
        with memoryview(out) as view:
            self.disk.read(offset, view)
        if changes == self._changes:
            assert out == os.pread(self._descriptor, length, offset), f"{length} bytes at {offset} are stale"

    def _write(self, offset: int, length: int) -> None:
        data = b"".join(any_page(self.rng) for _ in range(-(-length // 4096)))[:length]
        self._changes += 1
        changes = self._changes
        self.disk.write(offset, memoryview(data))
        if changes == self._changes:
            assert os.pread(self._descriptor, length, offset) == data, "what was written is not in the file"

    def check_all(self) -> None:
        """Everything, twice."""
        self.file.failing_reads = self.file.failing_writes = self.file.failing_flushes = 0
        for _ in range(2):
            self._read(0, self.size)

    def close(self) -> None:
        """The disk goes, with its pages."""
        self.disk.close()
        os.close(self._descriptor)
