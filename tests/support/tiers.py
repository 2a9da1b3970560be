"""A tier in memory. It fails when told to, and notices misuse: writes to slots that are not reserved, reads of what
was never written."""

import errno
from collections.abc import Callable, Sequence

from zcache.tiers.slot_map import SlotMap


class MemoryTier(SlotMap):
    """`slot_count` frames; `failing_writes` and `failing_reads` are how many of the next ones raise."""

    def __init__(self, slot_count: int, frame_bytes: int = 4096) -> None:
        super().__init__(slot_count)
        self.frame_bytes = frame_bytes
        self.medium: dict[int, bytes] = {}
        self.failing_writes = 0
        self.failing_reads = 0
        self.write_sizes: list[int] = []
        self.before_write: Callable[[], None] = lambda: None
        self.before_read: Callable[[], None] = lambda: None

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        self.before_write()
        if self.failing_writes:
            self.failing_writes -= 1
            self.medium[first_slot] = bytes(self.frame_bytes)  # a torn write: undefined is allowed, old is not
            raise OSError(errno.EIO, "injected write error")
        for slot, frame in enumerate(frames, first_slot):
            assert self.is_used(slot), f"write to slot {slot}, which is not reserved"
            assert len(frame) == self.frame_bytes
            self.medium[slot] = bytes(frame)
        self.write_sizes.append(len(frames))

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        self.before_read()
        if self.failing_reads:
            self.failing_reads -= 1
            raise OSError(errno.EIO, "injected read error")
        for slot, frame in enumerate(frames, first_slot):
            frame[:] = self.medium[slot]

    def flip_bit(self, slot: int, byte: int = 0) -> None:
        """Damage one slot."""
        damaged = bytearray(self.medium[slot])
        damaged[byte] ^= 1
        self.medium[slot] = bytes(damaged)

    def close(self) -> None:
        pass
