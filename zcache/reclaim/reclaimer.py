"""Reclaim: keeps frames available for puts by writing the oldest ones below before they are needed.

A frame is *available* when a put can have it at once: its RAM slot is free, or it is CLEAN and can
be dropped at no cost. It is *ready* if that or ephemeral: a persistent put eats the oldest of
those, one for each frame that it needs, before anything persistent leaves RAM
(`zcache.reclaim.ouroboros`).

Background reclaim (a kswapd) sleeps until fewer than `low_watermark` frames are ready, then cleans
the LRU tail, a batch at a time, until `high_watermark` are. A put that finds none reclaims by
itself, a small batch, so that it waits for one short write and not for a long one. Frames are
written as they are (`zcache.reclaim.flight`): nothing is decompressed, and no page-table entry
changes.

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
from zcache.books import Books
from zcache.hardening.own_thread import OwnThread
from zcache.pageframes import PageFrames
from zcache.pageframes.queues import Queue
from zcache.pages.tmem import Kind
from zcache.reclaim.compaction import VICTIMS, WORTH_WEIGHT, Compactor
from zcache.reclaim.flight import Flights, flights_frames
from zcache.reclaim.ouroboros import Ouroboros
from zcache.reclaim.recompression import Recompressor
from zcache.reclaim.spare_time import SpareTime
from zcache.tiers.backoff import FIRST_REST_SECONDS, LAST_REST_SECONDS
from zcache.tiers.below import Below, Place, rest_seconds
from zcache.tiers.health import describe

#: Slots below are short when one in 64 is free.
SHORT_BELOW_SHIFT: Final = 6


class Reclaimer:
    """Writes frames back, in the background (`start`, `stop`) and on demand (`make_room`)."""

    def __init__(
        self,
        frames: PageFrames,
        allocator: Allocator,
        below: Below,
        flights: Flights,
        ouroboros: Ouroboros,
        books: Books,
        compactor: Compactor | None = None,
        recompressor: Recompressor | None = None,
    ) -> None:
        self._frames = frames
        self._allocator = allocator
        self._below = below
        self._flights = flights
        self.landed = flights.landed  # also notified when frames were had in another way
        self.ouroboros = ouroboros
        self._lock, self._statistics, _, self._clock = books
        self.unforeseen = ""  # the last thing that background reclaim has met and should not have
        self._compactor = compactor
        self.recompressor = recompressor
        self.spare_time = SpareTime(books.clock)
        self.waiting_puts = 0
        self.chosen_watermarks: tuple[int, int] | None = None  # low and high, if somebody has chosen them
        self.set_watermarks(frames.budget_frames)
        self._sync_batch, self.batch = flights_frames(frames.frame_bytes)  # frames in a flight, at most
        self.wake = threading.Event()
        self.stopped = threading.Event()
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
        if self._frames.ready < self.low_watermark and not self.wake.is_set():
            self.wake.set()

    def make_room(self, kind: Kind) -> bool:
        """Called without the lock by a put that found no frame. False: there is no room, and
        waiting will not help."""
        with self._lock:
            self.waiting_puts += 1
        try:
            return self._make_room(kind)
        finally:
            with self._lock:
                self.waiting_puts -= 1

    def why_full(self) -> str:
        """Under the lock: why there is no room, and what to do, in words."""
        if failing := self._below.failing():
            return "; ".join(map(_why_failing, failing))
        are_prompt = [place.tier.is_prompt for place in self._below.places]
        if not are_prompt:
            return "RAM is full, and there is no backing; give a larger budget or backing"
        where = "RAM and the backing are full" if any(are_prompt) else "RAM is full"
        if all(are_prompt):
            return f"{where}; give a larger budget or backing"
        return (
            f"{where}, and the engines take no more (`zcache status`); give a larger budget or backing, "
            "or have the engines hold more (their maxmemory, quotas, remote_budget)"
        )

    def _make_room(self, kind: Kind) -> bool:
        while True:
            with self._lock:
                if kind is Kind.EPHEMERAL:
                    return self.ouroboros.eat_tail()
                if self._frames.available or self.ouroboros.eat():
                    return True
                if self._pack_ram(WORTH_WEIGHT):
                    continue
                can_clean = self._flights.can_clean()
                is_put = self._thread is not None  # which leaves it to that thread to wait for a network
                if can_clean and (place := self._below.begin_try(is_put)):
                    flight = self._flights.start(place, self._sync_batch)
                elif can_clean and is_put and not self._below.is_prompt() and not self._below.failing():
                    self.wake.set()
                    self._clock.wait(self.landed, FIRST_REST_SECONDS)
                    continue
                elif self._pack_ram(WORST_WEIGHT, everywhere=True):
                    continue
                elif self._frames.in_flight or self._is_packing() or (can_clean and not self._below.is_hopeless()):
                    if not self._wait_for_landing():
                        return False
                    continue
                else:
                    flight = None
            if flight is None:
                if not self._pack_below(everywhere=True):
                    return False
                continue
            if self._flights.fly(flight):
                with self._lock:
                    self._statistics.reclaim_sync += len(flight.frames)
                return True

    def _wait_for_landing(self) -> bool:
        """Under the lock: a flight has ended, or it may be time for the next try. False: no more
        patience."""
        failing = self._below.failing()
        if not failing:
            if self._frames.in_flight or self._is_packing():
                self.landed.wait()
            else:  # one tier rests, and what is left to write to is for background reclaim
                self.wake.set()
                self._clock.wait(self.landed, FIRST_REST_SECONDS)
            return True
        patience = max(place.health.writing.patience_seconds() for place in failing)
        if patience:
            self._clock.wait(self.landed, min(patience, max(rest_seconds(failing), FIRST_REST_SECONDS)))
        return patience > 0

    # -- the background thread
    # --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start background reclaim; frames that are written by it need no put to wait. Raises
        `EnvironmentProblem` if there can be no thread."""
        self._thread = OwnThread("zcache-reclaim", self.run, goes_on=True)
        self._thread.start()

    def stop(self) -> None:
        """End background reclaim and wait for its flight to land."""
        self.stopped.set()
        self.wake.set()
        if self._thread:
            self._thread.join()
            self._thread = None

    def run(self) -> None:
        while not self.stopped.is_set():
            self.wake.wait()
            self.wake.clear()
            while not self.stopped.is_set() and self.wants_to_clean():
                try:
                    arrived = self.clean_some()
                except Exception as error:  # without this thread each put would have to wait
                    self._note_unforeseen(error)
                    self.stopped.wait(LAST_REST_SECONDS)
                    break
                time.sleep(0)  # what was packed was packed with the GIL: let requests go on
                if arrived and self._frames.ready >= self.high_watermark and self._below.in_trouble():
                    self.stopped.wait(rest_seconds(self._below.in_trouble()))  # for that one: enough is ready
                if arrived is None and not self._below.in_trouble():
                    break
                if not arrived:
                    self.stopped.wait(LAST_REST_SECONDS if arrived is None else rest_seconds(self._below.failing()))

    def wants_to_clean(self) -> bool:
        """Whether background reclaim goes on: few frames are available, or it is yet to be seen
        that writes work again."""
        return self._frames.ready < self.high_watermark or bool(self._below.in_trouble())

    def clean_some(self) -> bool | None:
        """One piece of background work: a few frames are packed, or one is compressed once more, or
        a flight is flown. False: the flight failed, or it is too early for another try. None: there
        is nothing to clean, and so no trouble that could be seen to end; or no room below."""
        if self._is_short_below() and self._pack_below():
            return True
        with self._lock:
            if self._pack_ram(WORTH_WEIGHT):
                return True
        if self.recompressor and self._may_work() and self._recompress(self.recompressor.recompress_oldest):
            return True
        with self._lock:
            if not self._flights.can_clean():
                if self._pack_ram(WORST_WEIGHT):
                    return True
                waiting = self._frames.queue_length[Queue.PERSISTENT] > self._allocator.kept_frames
                if not (waiting or self._frames.in_flight):
                    for place in self._below.places:
                        place.health.writing.forget()
                return None
            next_place = self._below.begin_try()
            if not next_place:
                return False
            flight = self._flights.start(next_place, self.batch)
        arrived = self._flights.fly(flight)
        if arrived:
            with self._lock:
                self._statistics.reclaim_background += len(flight.frames)
        return arrived

    # -- packing, with an allocator that needs it
    # -------------------------------------------------------------------

    def _pack_ram(self, worst_weight: int, everywhere: bool = False) -> bool:
        """Under the lock; whether anything was moved."""
        return self._compactor is not None and self._compactor.pack_ram(worst_weight, everywhere)

    def _pack_below(self, everywhere: bool = False) -> bool:
        """Without the lock; see `Compactor.pack_below`."""
        if not (self._compactor and self._below.places):
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
        return (
            self._compactor is not None
            and self._frames.available >= VICTIMS  # what is packed goes into RAM, and the reserve is not for this
            and self._below.is_short(SHORT_BELOW_SHIFT)
        )

    # -- what can wait
    # ----------------------------------------------------------------------------------------------

    def tidy(self) -> bool:
        """One piece of work that nobody waits for, if there is time to spare: a frame at rest is
        compressed once more, or a few are packed. Whether there was any. Called without the lock,
        now and then."""
        if not self._may_work():
            return False
        if self.recompressor and self._recompress(self.recompressor.recompress_rested):
            return True
        with self.spare_time.spending(), self._lock:
            return self._pack_ram(WORST_WEIGHT)

    def tidy_up(self) -> None:
        """All of it that there is time for."""
        try:
            while self.tidy() and not self.stopped.is_set():
                time.sleep(0)
        except Exception as error:
            self._note_unforeseen(error)

    def _note_unforeseen(self, error: Exception) -> None:
        with self._lock:
            self._statistics.unforeseen_errors += 1
            self.unforeseen = describe(error)

    def _may_work(self) -> bool:
        return not self.waiting_puts and self.spare_time.has_some()

    def _recompress(self, work: Callable[[], bool]) -> bool:
        with self.spare_time.spending():
            return work()


def _why_failing(place: Place) -> str:
    """In words, with what to do."""
    error = place.health.writing.last_error
    if place.tier.is_prompt:
        return f"the backing cannot be written ({error}); look at the disk (`zcache status`, dmesg)"
    return f"frames cannot be sent to the engines ({error}); look at the engines (`zcache status`)"
