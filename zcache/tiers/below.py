"""What is below RAM: tiers from warm to cold, in one row of slots.

A frame knows one number, that of its slot below (`PageFrames.below`). So slots are numbered
through: those of the first tier from 1, then those of the next. Each tier has a health of its own.
Frames go to the first tier that has room and may be tried now: one that fails is passed over until
its rest is over, and then tried before those behind it.

Locking: the store's lock, but for `Place.write`, `Place.read`, and looks that may be late. Cost:
nothing on the hot paths; a comparison for each frame that gives its slot back.
"""

from collections.abc import Callable, Iterable, Sequence

from zcache.clock import Clock
from zcache.image.flat_array import FlatArray
from zcache.tiers import Tier, WarmTier
from zcache.tiers.health import Health
from zcache.tiers.slot_map import WINDOW_SLOTS


class Place:
    """One tier, and where its slots are in the row: from `before + 1` to `last`."""

    def __init__(self, tier: Tier, before: int, clock: Clock) -> None:
        self.tier = tier
        self.before = before
        self.last = before + tier.slot_count
        self.health = Health(clock)
        self.flights = 0  # under way to it
        self.warm = tier if isinstance(tier, WarmTier) else None
        #: Which frame each slot is, or was: where frames go on to the next tier.
        self.owner = FlatArray("I", tier.slot_count + 1) if self.warm else None

    def has_room(self) -> bool:
        """Whether a slot is free."""
        return self.tier.free_slots > 0

    def reserve(self, count: int) -> tuple[int, int]:
        """Up to `count` consecutive free slots: the first, and how many."""
        first, count = self.tier.reserve(count)
        return first + self.before, count

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """Frames to consecutive slots of this tier; raises what the tier does."""
        self.tier.write(first_slot - self.before, frames)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """From consecutive slots of this tier; raises what the tier does."""
        self.tier.read(first_slot - self.before, frames)

    def read_again(self, slot: int, frame: memoryview, is_right: Callable[[], bool]) -> None:
        """What was read is not what was written; raises what the tier does."""
        self.tier.read_again(slot - self.before, frame, is_right)

    def is_known_dead(self, slot: int) -> bool:
        """Whether what is in this slot is not worth waiting for, by what is known. A disk is one
        thing: once nothing could be read for as long as there is patience."""
        if self.warm:
            return self.warm.is_known_dead(slot - self.before)
        reading = self.health.reading
        return reading.failures > 0 and not reading.patience_seconds()


def rest_seconds(places: Iterable[Place]) -> float:
    """Until the first of these may be tried again; 0: now, or there are none."""
    return min((place.health.writing.rest_seconds() for place in places), default=0.0)


class Below:
    """The row; empty where there is nothing below RAM."""

    def __init__(self, tiers: Sequence[Tier], clock: Clock) -> None:
        self.places: list[Place] = []
        self.slot_count = 0
        for tier in tiers:
            self.places.append(Place(tier, self.slot_count, clock))
            self.slot_count += tier.slot_count
        #: Where a tier begins: what is read or written in one go does not go beyond.
        self.firsts = frozenset(place.before + 1 for place in self.places)

    @property
    def used_slots(self) -> int:
        """That frames have, or are being written to."""
        return sum(place.tier.used_slots for place in self.places)

    def place_of(self, slot: int) -> Place:
        """The tier that a slot is in."""
        for place in self.places:
            if slot <= place.last:
                return place
        raise AssertionError(f"slot {slot} of {self.slot_count}")

    def has_room(self) -> bool:
        """Whether a slot is free, in whichever tier."""
        return any(place.has_room() for place in self.places)

    def begin_try(self, is_put: bool = False) -> Place | None:
        """Where to write now, and next: the first tier with room that is well, or may be tried
        again; None: nowhere. `is_put`: for a put, which does not wait for just any tier."""
        for place in self.places:
            if (place.tier.is_prompt or not is_put) and place.has_room() and place.health.writing.begin_try():
                return place
        return None

    def is_prompt(self) -> bool:
        """Whether there is room that a put may make use of itself."""
        return any(place.tier.is_prompt and place.has_room() for place in self.places)

    def failing(self) -> list[Place]:
        """The tiers that can be written to, or are, if all of these fail. Who waits for room waits
        for their trouble to end."""
        those = [place for place in self.places if place.has_room() or place.flights] or self.places
        return those if all(place.health.writing.failures for place in those) else []

    def is_hopeless(self) -> bool:
        """Whether those that have room have failed for longer than anybody waits, and there is
        another that is well, in which room can be made."""
        is_any_well = len(self.in_trouble()) < len(self.places)
        failing = self.failing()
        return is_any_well and bool(failing) and not any(place.health.writing.patience_seconds() for place in failing)

    def is_short(self, shift: int) -> bool:
        """Whether less than one in `1 << shift` of the slots is free that can be written to."""
        those = [place for place in self.places if not place.health.writing.failures] or self.places
        slots = sum(place.tier.slot_count for place in those)
        return bool(those) and slots - sum(place.tier.used_slots for place in those) < max(slots >> shift, 1)

    def in_trouble(self) -> list[Place]:
        """The tiers of which it is yet to be seen that writes work again."""
        return [place for place in self.places if place.health.writing.failures]

    def is_within_reach(self, slot: int) -> bool:
        """Whether a network has what is in this slot, and may be asked for it now. False for a
        disk: what could not be read there stays so until it is."""
        place = self.place_of(slot)
        return place.warm is not None and place.warm.is_within_reach(slot - place.before)

    def note(self, slot: int, frame: int) -> None:
        """A frame is in this slot from now on."""
        place = self.place_of(slot)
        if place.owner:
            place.owner.view[slot - place.before] = frame

    def release(self, slot: int) -> None:
        """Give a slot back; 0 is none, as most frames have that die."""
        if slot:
            place = self.place_of(slot)
            place.tier.release(slot - place.before)

    def take_over(self, slot: int, frame: int) -> None:
        """A predecessor's frame is in this slot; raises `Imbalance` if none can be."""
        place = self.place_of(slot) if slot <= self.slot_count else self.places[-1]
        place.tier.take_over(slot - place.before)
        self.note(slot, frame)

    def fault_ahead(self) -> None:
        """As `Tier.fault_ahead`."""
        for place in self.places:
            place.tier.fault_ahead()
            if place.owner and place.warm:
                place.owner.fault_ahead(place.warm.next_slot + WINDOW_SLOTS)

    def close(self) -> None:
        """Let go of all tiers."""
        for place in self.places:
            place.tier.close()
