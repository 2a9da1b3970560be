"""Reclaim: keeps frames available for puts by writing the oldest ones below before they are needed.

A frame is *available* when a put can have it at once: its RAM slot is free, or it is CLEAN and can
be dropped at no cost. It is *ready* if that or ephemeral: a persistent put eats the oldest of
those, one for each frame that it needs, before anything persistent leaves RAM (ouroboros).
Background reclaim (a kswapd) sleeps until fewer than `low_watermark` frames are ready, then cleans
the LRU tail, a batch at a time, until `high_watermark` are. A put that finds none reclaims by
itself, a small batch, so that it waits for one short write and not for a long one. Frames are
written as they are: nothing is decompressed, and no page-table entry changes.

One flight: under the lock, reserve a run of slots below and isolate as many of the oldest frames
(they are WRITEBACK now: nobody changes their bytes or reuses their RAM); without the lock, seal and
write them; under the lock, they land as CLEAN, or go straight to FREE if all their pages died
meanwhile. A write that fails puts them back as the oldest.

A tier that fails is tried again with `Backoff`: by background reclaim, and by a put that needs
room, one of them at a time; until a write arrives, or no frame is left to be written: then nothing
is kept in RAM by that trouble, nothing can show whether it lasts, and it is forgotten. A put for
which there is no room waits while that trouble is younger than `PATIENCE_SECONDS`, and fails at
once when it is older: it is held up for that long and two writes, at most. The next try writes to
other slots, because slots are handed out next-fit; so a bad spot below costs a rest, and not the
tier. A write that neither fails nor ends is waited for: giving up would leave its frames in RAM all
the same, and the disk's driver has a timeout of its own.

With an allocator that leaves holes there is another way to have frames: to pack the lightest into
fewer (`zcache.reclaim.compaction`). It comes first where it is cheap, and last where nothing can be
written; below, when slots run short. And with spare time the oldest are compressed once more
(`zcache.reclaim.recompression`) before they are written. A put that needs room waits for neither of
these two: it packs in RAM, writes, and packs below only if nothing else is left.

Law: work between two looks at the lock is bounded by the batch. Nothing here waits for anything but
the tier, other flights, and a rest.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from zcache.allocators import Allocator
from zcache.allocators.log import WORST_WEIGHT
from zcache.hardening.own_thread import OwnThread
from zcache.pageframes import PageFrames
from zcache.pageframes.queues import Queue
from zcache.pageframes.transitions import abort, isolate_oldest, land, oldest_ephemeral
from zcache.reclaim.compaction import VICTIMS, WORTH_WEIGHT, Compactor
from zcache.reclaim.recompression import Recompressor
from zcache.reclaim.spare_time import SpareTime
from zcache.seals import Seal
from zcache.statistics import Statistics
from zcache.tiers import Tier
from zcache.tiers.backoff import FIRST_REST_SECONDS, LAST_REST_SECONDS
from zcache.tiers.health import Health, describe

#: One background flight: one sequential write, which takes a disk of 500 MB/s one millisecond.
BATCH_BYTES: Final = 512 << 10
#: One synchronous flight: its put waits for the whole of it.
SYNC_BATCH_BYTES: Final = 128 << 10
#: Slots below are short when one in 64 is free.
SHORT_BELOW_SHIFT: Final = 6


def flights_frames(frame_bytes: int) -> tuple[int, int]:
    """How many frames a flight has at most: a synchronous one, and one in the background."""
    return max(SYNC_BATCH_BYTES // frame_bytes, 1), max(BATCH_BYTES // frame_bytes, 1)


class Reclaimer:
    """Writes frames back, in the background (`start`, `stop`) and on demand (`make_room`)."""

    def __init__(
        self,
        frames: PageFrames,
        allocator: Allocator,
        tier: Tier | None,
        seal: Seal,
        lock: threading.Lock,
        statistics: Statistics,
        health: Health,
        forget: Callable[[int], None],
        compactor: Compactor | None = None,
        recompressor: Recompressor | None = None,
    ) -> None:
        self._frames = frames
        self._allocator = allocator
        self._tier = tier
        self._seal = seal
        self._lock = lock
        self._statistics = statistics
        self._health = health
        self._forget = forget
        self._compactor = compactor
        self._recompressor = recompressor
        self.spare_time = SpareTime(health.clock)
        self._waiting_puts = 0
        self.chosen_watermarks: tuple[int, int] | None = None  # low and high, if somebody has chosen them
        self.set_watermarks(frames.budget_frames)
        self._sync_batch, self._batch = flights_frames(frames.frame_bytes)
        self.landed = threading.Condition(lock)
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: OwnThread | None = None

    def set_watermarks(self, budget_frames: int) -> None:
        """As they were chosen, or between 1/32 and 1/16 of the budget: at 160 MiB, 5 MiB of frames
        are ready before reclaim wakes, and 10 MiB when it rests."""
        low, high = self.chosen_watermarks or (budget_frames // 32, budget_frames // 16)
        self.low_watermark = max(min(low, budget_frames // 2), 1)
        self.high_watermark = max(min(high, budget_frames // 2), 2)
        self.wake_below_slots = self.low_watermark + self._frames.reserve_frames  # free ones: what a put looks at

    # -- called by the store
    # ----------------------------------------------------------------------------------------

    def wake_if_low(self) -> None:
        """Cheap, and called with or without the lock: wakes background reclaim if few frames are
        available."""
        if self._frames.ready < self.low_watermark and not self._wake.is_set():
            self._wake.set()

    def make_room(self, queue: int) -> bool:
        """Called without the lock by a put that found no frame. False: there is no room, and
        waiting will not help."""
        with self._lock:
            self._waiting_puts += 1
        try:
            return self._make_room(queue)
        finally:
            with self._lock:
                self._waiting_puts -= 1

    def why_full(self) -> str:
        """Under the lock: why there is no room, and what to do, in words."""
        writing = self._health.writing
        if writing.failures:
            return f"the backing cannot be written ({writing.last_error}); look at the disk (`zcache status`, dmesg)"
        where = "RAM and the backing are full" if self._tier else "RAM is full, and there is no backing"
        return f"{where}; give a larger budget or backing"

    def _make_room(self, queue: int) -> bool:
        writing = self._health.writing
        while True:
            with self._lock:
                if queue == Queue.EPHEMERAL:
                    has_eaten = self.evict_oldest_ephemeral()
                    self._statistics.eph_ate_tail += has_eaten
                    self._statistics.eph_ate_tail_failed += not has_eaten
                    return has_eaten
                if self._frames.available or self.eat_ephemeral():
                    return True
                if self._pack_ram(WORTH_WEIGHT):
                    continue
                can_clean = self._can_clean()
                if can_clean and writing.begin_try():
                    flight = self._start_flight(self._sync_batch)
                elif self._pack_ram(WORST_WEIGHT, everywhere=True):
                    continue
                elif can_clean or self._frames.in_flight or self._is_packing():
                    if not self._wait_for_landing():
                        return False
                    continue
                else:
                    flight = None
            if flight is None:
                if not self._pack_below(everywhere=True):
                    return False
                continue
            _, _, batch = flight
            if self._fly(*flight):
                with self._lock:
                    self._statistics.reclaim_sync += len(batch)
                return True

    def _wait_for_landing(self) -> bool:
        """Under the lock: a flight has ended, or it may be time for the next try. False: no more
        patience."""
        writing = self._health.writing
        if not writing.failures:
            self.landed.wait()
            return True
        patience = writing.patience_seconds()
        if patience:
            self._health.clock.wait(self.landed, min(patience, max(writing.rest_seconds(), FIRST_REST_SECONDS)))
        return patience > 0

    # -- the background thread
    # --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start background reclaim; frames that are written by it need no put to wait. Raises
        `EnvironmentProblem` if there can be no thread."""
        self._thread = OwnThread("zcache-reclaim", self._run)
        self._thread.start()

    def stop(self) -> None:
        """End background reclaim and wait for its flight to land."""
        self._stopped.set()
        self._wake.set()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.wait()
            self._wake.clear()
            while not self._stopped.is_set() and self.wants_to_clean():
                try:
                    arrived = self.clean_some()
                except Exception as error:  # without this thread each put would have to wait
                    self._note_unforeseen(error)
                    self._stopped.wait(LAST_REST_SECONDS)
                    break
                time.sleep(0)  # what was packed was packed with the GIL: let requests go on
                if arrived is None and not self._health.writing.failures:
                    break
                if not arrived:
                    rest = LAST_REST_SECONDS if arrived is None else self._health.writing.rest_seconds()
                    self._stopped.wait(rest)

    def wants_to_clean(self) -> bool:
        """Whether background reclaim goes on: few frames are available, or it is yet to be seen
        that writes work again."""
        return self._frames.ready < self.high_watermark or self._health.writing.failures > 0

    def clean_some(self) -> bool | None:
        """One piece of background work: a few frames are packed, or one is compressed once more, or
        a flight is flown. False: the flight failed, or it is too early for another try. None: there
        is nothing to clean, and so no trouble that could be seen to end; or no room below."""
        if self._is_short_below() and self._pack_below():
            return True
        with self._lock:
            if self._pack_ram(WORTH_WEIGHT):
                return True
        if self._recompressor and self._may_work() and self._recompress(self._recompressor.recompress_oldest):
            return True
        with self._lock:
            if not self._can_clean():
                if self._pack_ram(WORST_WEIGHT):
                    return True
                waiting = self._frames.queue_length[Queue.PERSISTENT] > self._allocator.kept_frames
                if not (waiting or self._frames.in_flight):
                    self._health.writing.forget()
                return None
            if not self._health.writing.begin_try():
                return False
            first_slot, first_birth, batch = self._start_flight(self._batch)
        arrived = self._fly(first_slot, first_birth, batch)
        if arrived:
            with self._lock:
                self._statistics.reclaim_background += len(batch)
        return arrived

    # -- packing, with an allocator that needs it
    # -------------------------------------------------------------------

    def _pack_ram(self, worst_weight: int, everywhere: bool = False) -> bool:
        """Under the lock; whether anything was moved."""
        return self._compactor is not None and self._compactor.pack_ram(worst_weight, everywhere)

    def _pack_below(self, everywhere: bool = False) -> bool:
        """Without the lock; see `Compactor.pack_below`."""
        if not (self._compactor and self._tier):
            return False
        try:
            return self._compactor.pack_below(everywhere)
        finally:
            with self._lock:
                self.landed.notify_all()

    def _is_packing(self) -> bool:
        return self._compactor is not None and self._compactor.under_way > 0

    def _is_short_below(self) -> bool:
        """Whether frames below are to be packed, before there is no slot left for those that are on
        their way."""
        tier = self._tier
        return (
            self._compactor is not None
            and tier is not None
            and self._frames.available >= VICTIMS  # what is packed goes into RAM, and the reserve is not for this
            and tier.slot_count - tier.used_slots < max(tier.slot_count >> SHORT_BELOW_SHIFT, 1)
        )

    # -- what can wait
    # ----------------------------------------------------------------------------------------------

    def tidy(self) -> bool:
        """One piece of work that nobody waits for, if there is time to spare: a frame at rest is
        compressed once more, or a few are packed. Whether there was any. Called without the lock,
        now and then."""
        if not self._may_work():
            return False
        if self._recompressor and self._recompress(self._recompressor.recompress_rested):
            return True
        with self.spare_time.spending(), self._lock:
            return self._pack_ram(WORST_WEIGHT)

    def tidy_up(self) -> None:
        """All of it that there is time for."""
        try:
            while self.tidy() and not self._stopped.is_set():
                time.sleep(0)
        except Exception as error:
            self._note_unforeseen(error)

    def _note_unforeseen(self, error: Exception) -> None:
        with self._lock:
            self._statistics.unforeseen_errors += 1
            self._health.unforeseen = describe(error)

    def _may_work(self) -> bool:
        return not self._waiting_puts and self.spare_time.has_some()

    def _recompress(self, work: Callable[[], bool]) -> bool:
        with self.spare_time.spending():
            return work()

    # -- one flight
    # ----------------------------------------------------------------------------------------------

    def _can_clean(self) -> bool:
        """Under the lock: whether there is a frame to clean, and room below for it."""
        tier = self._tier
        return (
            tier is not None
            and self._frames.queue_length[Queue.PERSISTENT] > self._allocator.kept_frames
            and tier.used_slots < tier.slot_count
        )

    def _start_flight(self, limit: int) -> tuple[int, int, list[int]]:
        """Under the lock, after `_can_clean`: the first slot below, the first birth, and the frames
        that they are for, now in WRITEBACK."""
        assert self._tier
        waiting = self._frames.queue_length[Queue.PERSISTENT] - self._allocator.kept_frames
        first_slot, count = self._tier.reserve(min(limit, waiting))
        batch = isolate_oldest(self._frames, count, self._allocator.retire)  # as many: that many wait
        return first_slot, self._frames.give_births(len(batch)), batch

    def _fly(self, first_slot: int, first_birth: int, batch: list[int]) -> bool:
        """Without the lock: seal and write; then land the frames. False: the tier failed, and the
        frames are DIRTY again."""
        frames, tier, health = self._frames, self._tier, self._health
        assert tier
        size = frames.frame_bytes
        seals: list[bytes] = []
        failure = ""
        transfer = health.begin_transfer()
        try:
            starts = [frames.home[frame] * size for frame in batch]
            views = [frames.ram_view[start : start + size] for start in starts]
            with self._seal.sealed(batch, first_birth, views) as (bodies, seals):
                tier.write(first_slot, bodies)
        except Exception as error:  # whatever it is, frames that stayed in flight would be waited for for ever
            failure = describe(error)
        arrived = not failure
        with self._lock:
            self._statistics.slow_writes += health.end_transfer(transfer)
            for index, frame in enumerate(batch):
                if arrived:
                    self.release_below(land(frames, frame, first_slot + index, first_birth + index, seals[index]))
                else:
                    tier.release(first_slot + index)
            if not arrived:
                for frame in reversed(batch):  # each becomes the oldest, so the oldest goes back last
                    abort(frames, frame, self._allocator.restore)
                health.writing.failed(failure)
                self._statistics.writeback_errors += 1
                self._statistics.writeback_kept_frames += len(batch)
            else:
                health.writing.succeeded()
            self._statistics.writeback_batches += 1
            self.landed.notify_all()
        return arrived

    def release_below(self, slot: int) -> None:
        """Give a slot of the tier back (0: there is none); under the lock."""
        if slot:
            assert self._tier
            self._tier.release(slot)

    def eat_ephemeral(self) -> bool:
        """Under the lock: something persistent takes the RAM of the oldest ephemeral frame; False
        if there is none."""
        has_eaten = self.evict_oldest_ephemeral()
        self._statistics.pers_ate_eph += has_eaten
        self._statistics.pers_ate_eph_failed += not has_eaten
        return has_eaten

    def evict_oldest_ephemeral(self) -> bool:
        """Eat the tail of the ephemeral queue, under the lock; False if there is none.
        (ouroboros)"""
        frame = oldest_ephemeral(self._frames)
        if not frame:
            return False
        owners = self._allocator.evict(frame)
        for owner in owners:
            self._forget(owner)
        self._statistics.evicted_ephemeral_frames += 1
        self._statistics.evicted_ephemeral_pages += len(owners)
        return True
