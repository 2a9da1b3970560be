"""Demotion: the coldest frames of a warm tier go on to the next one, so that RAM, the warm tier and
the disk are one order of least recent use; and back into RAM, when there is room to spare.

A warm tier (`zcache.tiers.WarmTier`: memory at engines) hands its slots out in turn, so those
just ahead of where it hands out next hold what left RAM first. A hand goes round from there. A
frame that was read since the hand came by last is passed over once: the same second chance that
frames have in RAM. The others move as they are, sealed or encrypted: their bytes are read, their
seals are opened on a copy, they are written to the next tier in one go, and one word of the frame
table changes. Who reads such a frame just then looks again where it is.

It keeps one slot in 32 free, and begins when there are fewer than one in 64: a write to a warm tier
that is full would go past it, and what is colder would stay in the warmer place. It also moves out
what is over the limit, when somebody at the other end wants memory back.

**Pulled back** (the original's selfshrink): when more than a quarter of RAM's frames have been
free for `QUIET_SECONDS`, and none was written below meanwhile, the youngest frames of the warm tier
come back, a few at a time, and their slots are given back. They are the first to leave again. It
needs an allocator that can take a frame back (`log`).

One thread. Locking: the store's lock for moments; none while it reads and writes. Cost: two batches
of frames of memory.
"""

from typing import Final

from zcache.allocators import Allocator
from zcache.allocators.log import Log
from zcache.books import Books
from zcache.fetch.readback import Readback
from zcache.linux import memory
from zcache.linux.memory import anonymous_memory
from zcache.pageframes import PageFrames, State
from zcache.pageframes.transitions import adopt, keep_in_ram
from zcache.seals import Seal
from zcache.tiers import WarmTier
from zcache.tiers.below import Below, Place
from zcache.tiers.health import SLOW_SECONDS, describe

#: Frames that move in one go: one write of 512 KiB with `log`.
BATCH_FRAMES: Final = 8
#: Slots that are looked at in one go, under the lock: some 100 us.
LOOKED_AT: Final = 512
#: Free slots of the warm tier: it begins below one in so many, and ends at twice that.
LOW_SHIFT: Final = 6
#: Frames that come back in one go: slots to read into that nobody else needs then.
PULLED_FRAMES: Final = 4
#: How long there must have been room to spare.
QUIET_SECONDS: Final = 10.0


class _Victim:
    """A frame that is to move, and what was known of it under the lock."""

    __slots__ = ("below", "birth", "frame", "is_read", "seal")

    def __init__(self, frames: PageFrames, frame: int) -> None:
        self.frame = frame
        self.birth = frames.birth[frame]
        self.below = frames.below[frame]
        self.seal = frames.seal_of(frame)
        self.is_read = False

    def is_there(self, frames: PageFrames) -> bool:
        """Under the lock: whether it still is what it was, and where."""
        return frames.birth[self.frame] == self.birth and frames.below[self.frame] == self.below


class Demoter:
    """Between the first of `below`'s places, which is a warm tier, and the one after it, if there
    is one."""

    def __init__(
        self, frames: PageFrames, allocator: Allocator, below: Below, seal: Seal, readback: Readback, books: Books
    ) -> None:
        self._frames = frames
        self._allocator = allocator
        self._below = below
        self._warm = below.places[0]
        tier = self._warm.tier
        assert isinstance(tier, WarmTier)
        self._tier: WarmTier = tier
        self._next: Place | None = below.places[1] if len(below.places) > 1 else None
        self._seal = seal
        self._readback = readback
        self._lock, self._statistics, self._damage, self._clock = books
        size = frames.frame_bytes
        self._memory = memoryview(anonymous_memory((BATCH_FRAMES + 1) * size))
        self._bodies = [self._memory[index * size : (index + 1) * size] for index in range(BATCH_FRAMES)]
        self._trial = self._memory[BATCH_FRAMES * size :]
        self._hand = 1
        self._back = self._back_from = 0  # the same for frames that come back: where it goes on, since when
        self._is_demoting = False
        self.unforeseen = ""  # the last thing that it has met and should not have
        self._quiet_since: float | None = None
        self._written = 0  # batches, when it was last looked

    def populate(self) -> None:
        """Fault in its memory."""
        memory.populate(self._memory)

    def work(self) -> None:
        """As much as is due now. Called by one thread, again and again; one that ended would leave
        the warm tier full of what is coldest."""
        try:
            while self.demote_some() or self.pull_back_some():
                pass
        except Exception as error:
            with self._lock:
                self._statistics.unforeseen_errors += 1
                self.unforeseen = describe(error)

    # -- to the next tier
    # ------------------------------------------------------------------------------------------

    def demote_some(self) -> bool:
        """Move some of the coldest frames on, if there is need. Whether any moved."""
        place = self._next
        if place is None or not self._wants_to_demote():
            return False
        with self._lock:
            if not (place.has_room() and place.health.writing.begin_try()):
                return False
            victims = self._choose()
            first_slot, count = place.reserve(len(victims)) if victims else (0, 0)
            del victims[count:]
            place.flights += 1
        error: str | None = None
        try:
            error = self._transfer(place, victims, first_slot)
        finally:  # whatever it meets: slots that stayed reserved would be nobody's for ever
            with self._lock:
                moved = self._land(place, victims, first_slot, error)
        return moved > 0

    def _land(self, place: Place, victims: list[_Victim], first_slot: int, error: str | None) -> int:
        """Under the lock: what was written is there from now on, and the other slots are given
        back; how many moved. `error`: why the write failed, ""; None: it has not come to that."""
        place.flights -= 1
        moved = 0
        for slot, victim in enumerate(victims, first_slot):
            if error == "" and victim.is_read and victim.is_there(self._frames):
                self._frames.below[victim.frame] = slot
                self._below.note(slot, victim.frame)
                self._damage.unmark(victim.frame)
                self._below.release(victim.below)
                moved += 1
            else:
                self._below.release(slot)
        self._statistics.demoted_frames += moved
        if error:
            place.health.writing.failed(error)
        elif moved:
            place.health.writing.succeeded()
        return moved

    def _wants_to_demote(self) -> bool:
        capacity, used = self._tier.capacity_slots, self._tier.used_slots
        low = max(capacity >> LOW_SHIFT, BATCH_FRAMES)
        free = capacity - used
        self._is_demoting = used > 0 and (free < low or (self._is_demoting and free < 2 * low))
        return self._is_demoting

    def _choose(self) -> list[_Victim]:
        """Under the lock: from the hand on, what was not read since it came by last."""
        frames, tier, place = self._frames, self._tier, self._warm
        assert place.owner
        owner = place.owner.view
        chosen: list[_Victim] = []
        slot = self._hand
        for _ in range(min(LOOKED_AT, tier.slot_count)):
            if slot > tier.slot_count:
                slot = 1
            frame = owner[slot]
            if frame and frames.below[frame] == slot + place.before:
                if tier.was_read[slot]:
                    tier.was_read[slot] = 0
                else:
                    chosen.append(_Victim(frames, frame))
            slot += 1
            if len(chosen) == BATCH_FRAMES:
                break
        self._hand = slot
        return chosen

    def _transfer(self, place: Place, victims: list[_Victim], first_slot: int) -> str:
        """Without the lock: read, look at the seals, write; why it could not be written."""
        for victim, body in zip(victims, self._bodies, strict=False):
            began = self._clock.now()
            try:
                self._read(victim, body)
            except OSError:  # it may be dead by now; if not, whoever asks for it is told
                if self._clock.now() - began >= SLOW_SECONDS:
                    break  # engines hang: slots of the next tier are not to wait for one after the other
                continue
        if not any(victim.is_read for victim in victims):
            return ""
        try:
            place.write(first_slot, self._bodies[: len(victims)])
        except Exception as error:  # as in a flight: whatever it is, this tier is to have a rest
            return describe(error)
        return ""

    def _read(self, victim: _Victim, body: memoryview) -> None:
        """As it is, if it is what was sealed; or from another copy that is. Raises `OSError`."""

        def is_right() -> bool:
            self._trial[:] = body
            victim.is_read = self._seal.opens(victim.frame, victim.birth, victim.seal, self._trial)
            return victim.is_read

        slot = victim.below - self._warm.before
        self._tier.read_to_move(slot, [body])
        if not is_right():
            self._tier.read_again(slot, body, is_right)

    # -- back into RAM
    # ------------------------------------------------------------------------------------------

    def pull_back_some(self) -> bool:
        """Take some of the warm tier's frames back into RAM, if there is room to spare. Whether any
        came."""
        if not isinstance(self._allocator, Log) or not self._may_pull_back():
            return False
        frames = self._frames
        with self._lock:
            wanted = self._youngest()
        if not wanted:
            return False
        came = 0
        with self._readback.borrowed(wanted) as jobs, self._lock:
            for job in jobs:
                if not job.is_read or frames.birth[job.frame] != job.birth or frames.state[job.frame] != State.COLD:
                    continue
                if not frames.slots.free_count:
                    break
                job.slot = adopt(frames, job.frame, job.slot)
                self._below.release(keep_in_ram(frames, job.frame))
                self._damage.unmark(job.frame)
                came += 1
            self._statistics.pulled_back_frames += came
        return came > 0

    def _may_pull_back(self) -> bool:
        frames, now = self._frames, self._clock.now()
        if not self._tier.used_slots:
            return False
        is_over = self._next is None and self._tier.used_slots > self._tier.capacity_slots
        written = self._statistics.writeback_batches
        is_quiet = frames.free_slot_count > frames.budget_frames >> 2 and written == self._written
        self._written = written
        if not is_quiet:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
        rested = self._quiet_since is not None and now - self._quiet_since >= QUIET_SECONDS
        return rested or (is_over and frames.free_slot_count > frames.budget_frames >> 4)

    def _youngest(self) -> list[int]:
        """Under the lock: COLD frames of the warm tier, the last that came first."""
        frames, place = self._frames, self._warm
        assert place.owner
        owner = place.owner.view
        found: list[int] = []
        if self._back_from != self._tier.next_slot:  # others have come
            self._back_from = self._tier.next_slot
            self._back = self._back_from - 1
        slot = self._back
        for _ in range(min(self._tier.slot_count, LOOKED_AT)):
            if slot < 1:
                slot = self._tier.slot_count
            frame = owner[slot]
            if frame and frames.below[frame] == slot + place.before and frames.state[frame] == State.COLD:
                found.append(frame)
                if len(found) == PULLED_FRAMES:
                    break
            slot -= 1
        self._back = slot
        return found
