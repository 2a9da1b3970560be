"""Tiers in memory. They fail when told to, and notice misuse: writes to slots that are not
reserved, reads of what was never written. They know what they were given, and so which of their
slots hold something else."""

import errno
import random
from collections import defaultdict
from collections.abc import Callable, Sequence

from tests.support.clock import FakeClock
from zcache.tiers.backoff import PATIENCE_SECONDS, Backoff
from zcache.tiers.slot_map import SlotMap


class MemoryTier(SlotMap):
    """`slot_count` frames; `failing_writes` and `failing_reads` are how many of the next ones
    raise."""

    def __init__(self, slot_count: int, frame_bytes: int = 4096, clock: FakeClock | None = None) -> None:
        super().__init__(slot_count)
        self.clock = clock or FakeClock()
        self.frame_bytes = frame_bytes
        self.medium: dict[int, bytes] = {}
        self.failing_writes = 0
        self.failing_reads = 0
        self.bad_slots: set[int] = set()  # neither read nor written
        self.transfer_seconds = 0.0  # how long each takes
        self.tries = 0  # transfers that were asked for
        self.write_sizes: list[int] = []
        self.before_write: Callable[[], None] = lambda: None
        self.before_read: Callable[[], None] = lambda: None
        self.after_read: Callable[[], None] = lambda: None  # one that succeeded

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        self.before_write()
        self._begin(first_slot, len(frames), "write")
        if self.failing_writes:
            self.failing_writes -= 1
            self.medium[first_slot] = bytes(self.frame_bytes)  # a torn write: undefined is allowed, old is not
            raise OSError(errno.EIO, "injected write error")
        for slot, frame in enumerate(frames, first_slot):
            assert self.used_map()[slot], f"write to slot {slot}, which is not reserved"
            assert len(frame) == self.frame_bytes
            self.medium[slot] = bytes(frame)
        self.write_sizes.append(len(frames))

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        self.before_read()
        self._begin(first_slot, len(frames), "read")
        if self.failing_reads:
            self.failing_reads -= 1
            raise OSError(errno.EIO, "injected read error")
        for slot, frame in enumerate(frames, first_slot):
            frame[:] = self.medium[slot]
        self.after_read()

    def _begin(self, first_slot: int, count: int, what: str) -> None:
        self.tries += 1
        self.clock.seconds += self.transfer_seconds
        if not self.bad_slots.isdisjoint(range(first_slot, first_slot + count)):
            raise OSError(errno.EIO, f"injected {what} error: a bad spot")

    def flip_bit(self, slot: int, byte: int = 0) -> None:
        """Damage one slot."""
        damaged = bytearray(self.medium[slot])
        damaged[byte] ^= 1
        self.medium[slot] = bytes(damaged)

    def close(self) -> None:
        pass


class WarmMemoryTier(MemoryTier):
    """One whose coldest frames go on to the next tier. It has engines, each with a trouble of its
    own: number 0, and those that `engine_of` says of slots."""

    is_prompt = False

    def __init__(self, slot_count: int, frame_bytes: int = 4096, clock: FakeClock | None = None) -> None:
        super().__init__(slot_count, frame_bytes, clock)
        self.was_read = memoryview(bytearray(slot_count + 1))
        self.capacity_slots = slot_count
        self.is_reachable = False
        self.engine_of: dict[int, int] = {}
        self._troubles: defaultdict[int, Backoff] = defaultdict(lambda: Backoff(self.clock))

    def is_within_reach(self, slot: int) -> bool:
        assert self.used_map()[slot], f"slot {slot} is not reserved"
        return self.is_reachable

    def is_known_dead(self, slot: int) -> bool:
        return self._trouble_of(slot).seen_seconds() >= PATIENCE_SECONDS

    def _trouble_of(self, slot: int) -> Backoff:
        return self._troubles[self.engine_of.get(slot, 0)]

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        troubles = {self._trouble_of(slot) for slot in range(first_slot, first_slot + len(frames))}
        try:
            super().read(first_slot, frames)
        except OSError as error:
            for trouble in troubles:
                trouble.failed(str(error))
            raise
        for trouble in troubles:
            trouble.succeeded()
        self.was_read[first_slot : first_slot + len(frames)] = b"\1" * len(frames)

    def read_to_move(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        super().read(first_slot, frames)


class FaultyTier(MemoryTier):
    """A disk with every fault that a disk can have, each with a probability of its own, drawn from
    `rng`.

    All are survivable but for those that spoil what is below (`is_spoiled`): a write that is lost
    or goes astray, bits that flip, a file that is truncated. The pages that were there and nowhere
    else are then gone.
    """

    REGIMES: tuple[dict[str, float], ...] = (
        {},
        {"write_error": 1.0},
        {"write_error": 1.0, "no_space": 1.0},
        {"write_error": 0.3, "no_space": 0.3},
        {"read_error": 0.3},
        {"read_error": 1.0},
        {"read_error": 1.0, "write_error": 1.0},
        {"read_flip": 0.2},
        {"slow": 0.5},
        {"slow": 0.5, "read_error": 0.5, "write_error": 0.5},
        {"lost_write": 0.1, "stray_write": 0.05},
        {"spoiled_slot": 0.1},
        {"truncation": 0.1},
        {"bad_spot": 0.2},
    )

    def __init__(self, slot_count: int, clock: FakeClock, rng: random.Random, frame_bytes: int = 4096) -> None:
        super().__init__(slot_count, frame_bytes, clock)
        self._rng = rng
        self._given: dict[int, bytes] = {}
        self._regime: dict[str, float] = {}
        self.faults: dict[str, int] = {}  # how many of each there were
        self.failed_reads = 0  # transfers

    def choose_regime(self) -> None:
        """Other faults from here on; bad spots are mended now and then."""
        self._regime = self._rng.choice(self.REGIMES)
        if self._rng.random() < 0.3:
            self.bad_slots.clear()

    def heal(self) -> None:
        """No more faults; what is spoiled stays so."""
        self._regime = {}
        self.bad_slots.clear()

    def is_spoiled(self, slot: int) -> bool:
        """Whether a slot holds something else than was last written to it."""
        return self.medium.get(slot) != self._given.get(slot)

    def may_fail(self, slot: int) -> bool:
        """Whether a read of the slot may fail now although it is not spoiled."""
        return "read_error" in self._regime or "read_flip" in self._regime or slot in self.bad_slots

    def successor(self) -> "FaultyTier":
        """The same disk, as the next server will find it."""
        tier = FaultyTier(self.slot_count, self.clock, self._rng, self.frame_bytes)
        tier.medium, tier._given, tier.bad_slots = dict(self.medium), dict(self._given), set(self.bad_slots)
        tier._regime = self._regime
        return tier

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        self.before_write()
        self._pass_time(first_slot)
        self._begin(first_slot, len(frames), "write")
        if self._happens("write_error"):
            arrived = frames[: self._rng.randrange(len(frames))]  # a short write
            for slot, frame in enumerate(arrived, first_slot):
                self.medium[slot] = bytes(frame)
            raise OSError(errno.ENOSPC if self._happens("no_space") else errno.EIO, "injected write error")
        for slot, frame in enumerate(frames, first_slot):
            assert self.used_map()[slot], f"write to slot {slot}, which is not reserved"
            self._given[slot] = bytes(frame)
            if self._happens("stray_write"):
                self.medium[self._rng.randint(1, self.slot_count)] = bytes(frame)
            elif not self._happens("lost_write"):
                self.medium[slot] = bytes(frame)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        try:
            self._read(first_slot, frames)
        except OSError:
            self.failed_reads += 1
            raise

    def _read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        self.before_read()
        self._pass_time(first_slot)
        self._begin(first_slot, len(frames), "read")
        if self._happens("read_error"):
            raise OSError(errno.EIO, "injected read error")
        for slot, frame in enumerate(frames, first_slot):
            if slot not in self.medium:
                raise OSError(errno.EIO, "injected short read")
            frame[:] = self.medium[slot]
            if self._happens("read_flip"):
                frame[self._rng.randrange(self.frame_bytes)] ^= 1 << self._rng.randrange(8)
        self.after_read()

    def _pass_time(self, slot: int) -> None:
        if self._happens("slow"):
            self.clock.seconds += self._rng.uniform(0.5, 30.0)
        if self._happens("bad_spot"):
            self.bad_slots.add(slot)
        if self.medium and self._happens("spoiled_slot"):
            self.flip_bit(self._rng.choice(sorted(self.medium)), self._rng.randrange(self.frame_bytes))
        if self._happens("truncation"):
            end = self._rng.randrange(self.slot_count)
            self.medium = {slot: frame for slot, frame in list(self.medium.items()) if slot <= end}

    def _happens(self, fault: str) -> bool:
        if self._rng.random() >= self._regime.get(fault, 0.0):
            return False
        self.faults[fault] = self.faults.get(fault, 0) + 1
        return True
