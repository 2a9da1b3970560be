"""Disks of no consequence, over stores of their own: what is rehearsed on before there are
others."""

import os
from collections.abc import Iterator

from zcache.block.device import Device
from zcache.block.exports import Disk
from zcache.clean.disk_file import DiskFile
from zcache.pages.entry import PAGE_BYTES
from zcache.pages.tmem import Kind
from zcache.server.warm_up import scratch_store


def scratch_disks(allocator: str, with_clean: bool) -> Iterator[Disk]:
    """A device, and a small clean disk over the same store."""
    device = Device(*scratch_store(allocator))
    yield device
    if not with_clean:
        return
    from zcache.clean.clean_disk import CleanDisk  # locked in memory, where there are any

    descriptor = os.memfd_create("zcache-warm-up", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, 16 * PAGE_BYTES)
    disk = CleanDisk("", DiskFile.adopt(descriptor), False, device.store, device.store.tmem.new_pool(Kind.EPHEMERAL))
    yield disk
    disk.close()
