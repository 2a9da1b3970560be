"""Second copies, made again where one is lost: passes over all slots, a piece at a time.

A pass is due when something was lost or has come back; and every `PASS_SECONDS` for as long as one
may have become possible that was not. It finds, by a slot's holders alone, which may lack a copy.

Locking: `Copies.lock`, for moments. What it found may have changed when it acts, so each step names
the generation that it is for. The mender's thread alone. Cost: one frame's memory.
"""

from collections.abc import Callable
from typing import Final

from zcache.clock import Clock
from zcache.linux.memory import anonymous_memory
from zcache.remote.copies import Copies
from zcache.remote.peer import Peer
from zcache.remote.tables import NOBODY, TAIL_BYTES

#: Slots that are looked at in one go, some 50 us.
WINDOW_SLOTS: Final = 1024
#: Between two passes that nothing has called for. A million slots take 0.1 s.
PASS_SECONDS: Final = 5.0
#: For a frame to be fetched, and to be sent.
COPY_SECONDS: Final = 1.0


class Remirror:
    """Of `copies`; of each slot in use (`is_used`) there are to be `copies.wanted` ones."""

    def __init__(self, copies: Copies, is_used: Callable[[int], bool], clock: Clock) -> None:
        self._copies = copies
        self._is_used = is_used
        self._clock = clock
        self._next_slot = 0  # of a pass that is under way; 0: none is
        self._next_pass_at = 0.0
        self._is_short = False  # the last pass has left frames with one copy
        self._is_first = True  # this pass looks for what a predecessor has left in slots not in use
        self._is_fine: dict[int, bool] = {}  # what this pass has found of a pair of holders
        self._frame = memoryview(anonymous_memory(copies.frame_bytes))

    def work(self, ends: float) -> None:
        """A piece of a pass, if one is due."""
        copies, now = self._copies, self._clock.now()
        if not self._next_slot:
            self._count_lost()
            is_short = self._is_short or any(peer.is_gone for peer in copies.peers)
            if not (copies.is_mending_due or (is_short and now >= self._next_pass_at and self._is_possible())):
                return
            self._next_pass_at = now + PASS_SECONDS
            copies.is_mending_due = self._is_short = False
            self._is_fine = {}
            self._next_slot = 1
        stop = copies.tables.slot_count + 1
        while self._next_slot and now < ends:
            start = self._next_slot
            end = min(start + WINDOW_SLOTS, stop)
            for slot, both in enumerate(copies.tables.holders[start:end].tolist(), start):
                if not both or (self._is_fine_pair(both) and not (self._is_first and not self._is_used(slot))):
                    continue
                try:
                    self._mend_slot(slot)
                except OSError:  # the peer's trouble; when that is over, there is another pass
                    self._is_short = True
                if self._clock.now() >= ends:
                    self._next_slot = slot + 1  # at the end, the next turn finds no more
                    return
            self._next_slot = end if end < stop else 0
            now = self._clock.now()
        if not self._next_slot:
            self._is_first = False
            self._count_lost()

    def _is_possible(self) -> bool:
        """Whether two engines take frames."""
        return len(self._copies.choose(1, 2)) == 2

    def _is_fine_pair(self, both: int) -> bool:
        """Whether slots with these holders have what they need."""
        known = self._is_fine.get(both)
        if known is None:
            numbers = [number for number in (both & 0xFF, both >> 8) if number]
            peers = [self._copies.holder(number) for number in numbers]
            settled = [p for p, n in zip(peers, numbers, strict=True) if p and p.number == n and not p.is_gone]
            known = self._is_fine[both] = len(settled) == len(numbers) >= self._copies.wanted
        return known

    def _mend_slot(self, slot: int) -> None:
        copies, tables = self._copies, self._copies.tables
        generation = tables.generation[slot]
        if not self._is_used(slot):
            copies.drop(slot, generation)
            return
        there: list[Peer] = []
        away: list[tuple[Peer, int]] = []
        for number in filter(None, tables.holders_of(slot)):
            peer = copies.holder(number)
            if peer is None:
                copies.miss(slot, number, generation)
            elif not peer.is_up:
                away.append((peer, number))
            elif peer.number == number or self._still_has(peer, slot, number, generation):
                there.append(peer)
        if len(there) != 1 or copies.wanted < 2:
            return
        held_by = {peer.lane for peer in (*there, *(peer for peer, _ in away))}
        others = [peer for peer in copies.choose(1, len(copies.peers)) if peer.lane not in held_by]
        if not others or not all(peer.is_gone for peer, _ in away):
            self._is_short = True
            return
        self._copy(slot, generation, there[0], others[0], away[0][1] if away else NOBODY)

    def _still_has(self, peer: Peer, slot: int, number: int, generation: int) -> bool:
        """Whether a copy has survived its engine's other run."""
        if peer.ask("EXISTS", self._copies.key_of(peer, slot, generation)) == 1:
            self._copies.let_go(slot, number, generation, successor=peer.number)
            return True
        self._copies.miss(slot, number, generation)
        return False

    def _copy(self, slot: int, generation: int, source: Peer, target: Peer, away: int) -> None:
        """From one peer to another, which holds it in the place of the incarnation that is away, if
        there is one."""
        copies, value = self._copies, self._frame[:-TAIL_BYTES]
        number = source.number
        if not source.get_all([copies.key_of(source, slot, generation)], [value], COPY_SECONDS)[0]:
            copies.miss(slot, number, generation)
            return
        with target.writing:
            number = target.number
            try:
                target.begin_set([copies.key_of(target, slot, generation)], [(value,)], COPY_SECONDS)
                refusals = target.end_set(COPY_SECONDS)
            except OSError:
                copies.unnamed[target.lane] = True
                raise
        if refusals[0]:
            self._is_short = True
            return
        is_held = copies.let_go(slot, away, generation, number) if away else copies.hold(slot, number, generation)
        if not is_held:  # it died meanwhile, or was written again
            copies.bury(slot, generation, target)
        elif not self._is_used(slot):
            copies.drop(slot, generation)
        else:
            copies.counters.remirrored_frames += 1

    def _count_lost(self) -> None:
        copies = self._copies
        if copies.lost:
            generations = copies.tables.generation
            with copies.lock:
                for slot, generation in list(copies.lost.items()):
                    if generations[slot] != generation or not self._is_used(slot):
                        del copies.lost[slot]
        copies.counters.remote_lost_frames = len(copies.lost)
