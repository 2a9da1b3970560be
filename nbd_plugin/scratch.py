"""Disks of no consequence, over stores of their own: what is rehearsed on before there are
others."""

import os
from collections.abc import Iterator

from nbd_plugin.device import Device
from nbd_plugin.exports import Disk
from zcache.allocators.choice import ALLOCATORS
from zcache.clean.disk_file import DiskFile
from zcache.pages.codec import parse_codec
from zcache.pages.entry import PAGE_BYTES
from zcache.pages.tmem import Kind
from zcache.store.store import Store


def scratch_device(allocator: str) -> Device:
    """A small device over a store of its own."""
    chosen = ALLOCATORS[allocator]
    budget_bytes = chosen.min_budget_frames * chosen.frame_bytes
    store = Store(budget_bytes=budget_bytes, codec=parse_codec("lz4"), allocator=allocator)
    return Device(store, store.tmem.new_object(store.tmem.new_pool(Kind.PERSISTENT), 0, 64))


def scratch_disks(allocator: str, with_clean: bool) -> Iterator[Disk]:
    """One, and a small clean disk over the same store."""
    device = scratch_device(allocator)
    yield device
    if not with_clean:
        return
    from zcache.clean.clean_disk import CleanDisk  # locked in memory, where there are any

    descriptor = os.memfd_create("zcache-warm-up", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, 16 * PAGE_BYTES)
    disk = CleanDisk("", DiskFile.adopt(descriptor), False, device.store, device.store.tmem.new_pool(Kind.EPHEMERAL))
    yield disk
    disk.close()
