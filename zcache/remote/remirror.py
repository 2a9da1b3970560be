"""Second copies, made again where one is lost, and moved where they are not wanted: passes over all
slots, a piece at a time.

A pass is due when something was lost or has come back; and every `PASS_SECONDS` for as long as one
may have become possible that was not. It finds, by a slot's holders alone, which may lack a copy,
or have one where it should not be: at an engine that has to give memory back, or where both are at
one node of a Cluster since slots were moved.

Locking: `Copies.lock`, for moments. What it found may have changed when it acts, so each step names
the generation that it is for. The mender's thread alone. Cost: the memory of `BATCH_FRAMES` frames.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from zcache.clock import Clock
from zcache.linux import memory
from zcache.linux.memory import anonymous_memory
from zcache.remote.copies import Copies
from zcache.remote.peer import Peer
from zcache.remote.resp import Refused
from zcache.remote.tables import NOBODY, TAIL_BYTES

#: Slots that are looked at in one go, some 50 us.
WINDOW_SLOTS: Final = 1024
#: Between two passes that nothing has called for. A million slots take 0.1 s.
PASS_SECONDS: Final = 5.0
#: Frames that are copied in one go, from one peer to another: a network's delay is paid once.
BATCH_FRAMES: Final = 8
#: For those to be fetched, and to be sent. After a failure it is half as many frames: a link may be
#: too slow for more.
COPY_SECONDS: Final = 1.0
#: By so much a piece of a pass may take longer, for batches that did not fill.
LATE_SECONDS: Final = 0.1


class _Errand(NamedTuple):
    """A version of a slot that is to be copied, and the incarnation whose copy it takes the place
    of (`NOBODY`: none's)."""

    slot: int
    generation: int
    away: int


class Remirror:
    """Of `copies`; of each slot in use (`is_used`) there are to be `copies.wanted` ones."""

    def __init__(self, copies: Copies, is_used: Callable[[int], bool], clock: Clock) -> None:
        self._copies = copies
        self._is_used = is_used
        self._clock = clock
        self._next_slot = 0  # of a pass that is under way; 0: none is
        self._next_pass_at = 0.0
        self._is_short = False  # the last pass has left frames with one copy
        self.has_close = False  # frames whose copies are both at one node, as far as is known
        self._has_met_close = False  # in this pass
        self._is_first = True  # this pass looks for what a predecessor has left in slots not in use
        self._is_fine: dict[int, bool] = {}  # what this pass has found of a pair of holders
        self._errands: dict[tuple[Peer, Peer], list[_Errand]] = {}  # from one to the other: fewer than a batch
        self._batch_frames = BATCH_FRAMES  # as things go
        self._is_cut = False  # a connection, in this piece of a pass
        self._values: list[memoryview] = []
        if copies.wanted > 1:
            size = copies.frame_bytes
            room = memoryview(anonymous_memory(BATCH_FRAMES * size))
            memory.populate(room)  # not when memory is short
            self._values = [room[start : start + size - TAIL_BYTES] for start in range(0, len(room), size)]

    def work(self, ends: float) -> None:
        """A piece of a pass, if one is due."""
        copies, now = self._copies, self._clock.now()
        if not self._next_slot:
            self._count_lost()
            is_short = self._is_short or any(peer.is_gone or copies.room.is_over(peer) for peer in copies.peers)
            # To look needs no room; to copy does.
            is_due = (is_short and self._is_possible()) or self.has_close or copies.unproven() > 0
            if not (copies.is_mending_due or (is_due and now >= self._next_pass_at)):
                return
            self._next_pass_at = now + PASS_SECONDS
            copies.is_mending_due = self._is_short = self._has_met_close = False
            self._is_fine = {}
            self._next_slot = 1
        self._is_cut = False
        try:
            self._look_on(ends)
            for source, target in list(self._errands):
                if self._clock.now() >= ends + LATE_SECONDS:  # something hangs: the next pass finds them
                    self._is_short = True
                    break
                self._run(source, target)
        finally:  # a slot that is looked at again is not to be there twice
            self._errands.clear()
        if not self._next_slot:
            self._is_first = False
            self.has_close = self._has_met_close or (self.has_close and copies.is_mending_due)
            self._count_lost()

    def _look_on(self, ends: float) -> None:
        """Over slots, from where the last piece ended."""
        copies, now = self._copies, self._clock.now()
        stop = copies.tables.slot_count + 1
        while self._next_slot and now < ends:
            start = self._next_slot
            end = min(start + WINDOW_SLOTS, stop)
            self._prove(start, end)
            for slot, both in enumerate(copies.tables.holders[start:end].tolist(), start):
                if not both or (self._is_fine_pair(both) and not (self._is_first and not self._is_used(slot))):
                    continue
                try:
                    self._mend_slot(slot)
                except OSError as error:
                    self._fail(error)
                if self._is_cut or self._clock.now() >= ends:
                    self._next_slot = slot + 1  # at the end, the next turn finds no more
                    return
            self._next_slot = end if end < stop else 0
            now = self._clock.now()

    def _is_possible(self) -> bool:
        """Whether two engines take frames."""
        return len(self._copies.room.choose(1, 2)) == 2

    def _is_fine_pair(self, both: int) -> bool:
        """Whether slots with these holders have what they need."""
        known = self._is_fine.get(both)
        if known is None:
            numbers = [number for number in (both & 0xFF, both >> 8) if number]
            peers = [self._copies.holder(number) for number in numbers]
            settled = [p for p, n in zip(peers, numbers, strict=True) if p and p.number == n and not p.is_gone]
            known = len(settled) == len(numbers) >= self._copies.wanted and not self._has_to_move(settled)
            self._is_fine[both] = known
        return known

    def _prove(self, start: int, stop: int) -> None:
        """Look for copies whose engine has been another process since, of a window of slots."""
        copies, tables = self._copies, self._copies.tables
        asked: dict[int, list[tuple[int, int]]] = {}
        for slot, both in enumerate(tables.holders[start:stop].tolist(), start):
            for number in (both & 0xFF, both >> 8) if both else ():
                peer = copies.holder(number)
                if peer and peer.is_up and peer.number != number:
                    asked.setdefault(number, []).append((slot, tables.generation[slot]))
        for number, versions in asked.items():
            peer = copies.holder(number)
            assert peer
            try:
                found = peer.exist([copies.key_of(peer, *version) for version in versions])
            except OSError:  # the peer's trouble; when that is over, they are asked for again
                self._is_short = True
                continue
            for (slot, generation), is_there in zip(versions, found, strict=True):
                if is_there:
                    copies.let_go(slot, number, generation, successor=peer.number)
                else:
                    copies.miss(slot, number, generation)

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
            elif peer.is_up and peer.number == number:
                there.append(peer)
            else:
                away.append((peer, number))
        if copies.wanted < 2 or not there:
            return
        if len(there) == 2:
            self._move(slot, generation, there)
            return
        target = self._target({there[0].node}, {peer.lane for peer, _ in away})
        if not target or not all(peer.is_gone for peer, _ in away):
            self._is_short = True
            return
        errands = self._errands.setdefault((there[0], target), [])
        errands.append(_Errand(slot, generation, away[0][1] if away else NOBODY))
        if len(errands) >= self._batch_frames:
            self._run(there[0], target)

    def _has_to_move(self, there: Sequence[Peer]) -> bool:
        """Whether one of two copies has to go elsewhere, and can."""
        if len(there) == 2 and there[0].node == there[1].node:
            self._has_met_close = self._is_short = True  # until a pass meets none
        if len(there) < 2 or not (leaver := self._leaver(there)):
            return False
        is_possible = self._target(self._nodes_of(there, leaver), {leaver.lane}) is not None
        self._is_short |= not is_possible
        return is_possible

    def _leaver(self, there: Sequence[Peer]) -> Peer | None:
        """Of two that hold a slot's frame, who should not."""
        if there[0].node == there[1].node:
            return max(there, key=lambda peer: self._copies.at[peer.lane])
        return next(filter(self._copies.room.is_over, there), None)

    @staticmethod
    def _nodes_of(there: Sequence[Peer], leaver: Peer) -> set[object]:
        return {peer.node for peer in there if peer is not leaver}

    def _target(self, nodes: Collection[object], lanes: Collection[int]) -> Peer | None:
        """Who can take a copy: none of these, whose other one is there, or which have it."""
        for peer in self._copies.room.choose(1, len(self._copies.peers)):
            on_the_way = sum(len(errands) for (_, to), errands in self._errands.items() if to is peer)
            if peer.node not in nodes and peer.lane not in lanes and self._copies.room.of(peer) > on_the_way:
                return peer
        return None

    def _move(self, slot: int, generation: int, there: Sequence[Peer]) -> None:
        leaver = self._leaver(there)
        target = self._target(self._nodes_of(there, leaver), {leaver.lane}) if leaver else None
        if leaver and target and self._copy([_Errand(slot, generation, leaver.number)], leaver, target):
            # At once, and not from the list: it might come back to this engine.
            self._copies.remove(leaver, [self._copies.key_of(leaver, slot, generation)])

    def _run(self, source: Peer, target: Peer) -> None:
        """The errands from one to the other."""
        errands = self._errands.pop((source, target))
        if not target.takes_frames():  # any more
            self._is_short = True
            return
        try:
            self._copy(errands, source, target)
        except OSError as error:
            self._fail(error)
            self._batch_frames = max(self._batch_frames // 2, 1)
        else:
            self._batch_frames = min(self._batch_frames * 2, BATCH_FRAMES)

    def _fail(self, error: OSError) -> None:
        """A peer's trouble; when that is over, there is another pass. Unless it has just said no,
        its connection is closed, and has to be made again before this pass goes on: or all that
        comes after one frame that cannot be copied would wait for the next pass, which meets it
        again."""
        self._is_short = True
        self._is_cut |= not isinstance(error, Refused)

    def _copy(self, errands: Sequence[_Errand], source: Peer, target: Peer) -> int:
        """From one peer to another, which then holds each in the place of the incarnation that is
        away. How many it does."""
        copies, number = self._copies, source.number
        values = self._values[: len(errands)]
        keys = [copies.key_of(source, slot, generation) for slot, generation, _ in errands]
        found: list[tuple[_Errand, memoryview]] = []
        for errand, value, is_there in zip(errands, values, source.fetch(keys, values, COPY_SECONDS), strict=True):
            if is_there:
                found.append((errand, value))
            else:
                copies.miss(errand.slot, number, errand.generation)
        if not found:
            return 0
        keys = [copies.key_of(target, errand.slot, errand.generation) for errand, _ in found]
        try:
            with target.writing:
                number = target.number
                target.begin_set(keys, [(value,) for _, value in found], COPY_SECONDS)
                refusals = target.end_set(COPY_SECONDS)
            self._is_short |= any(refusals)
            taken = [errand for (errand, _), refusal in zip(found, refusals, strict=True) if not refusal]
            return sum(self._land(errand, target, number) for errand in taken)
        except BaseException:
            copies.unnamed[target.lane] = True  # it may have some that nobody names
            raise

    def _land(self, errand: _Errand, target: Peer, number: int) -> bool:
        """That incarnation of the target has it. Whether it holds it now."""
        copies, (slot, generation, away) = self._copies, errand
        is_held = copies.let_go(slot, away, generation, number) if away else copies.hold(slot, number, generation)
        if not is_held:  # it died meanwhile, or was written again
            copies.bury(slot, generation, target)
        elif not self._is_used(slot):
            copies.drop(slot, generation)
        else:
            copies.counters.remirrored_frames += 1
            return True
        return False

    def _count_lost(self) -> None:
        """Those that were written anew or released are lost no more. They may be a million: what
        reads and writes pages does not wait for the lock meanwhile."""
        copies, generations = self._copies, self._copies.tables.generation
        for slot, generation in list(copies.lost.items()):
            if generations[slot] != generation or not self._is_used(slot):
                with copies.lock:
                    if copies.lost.get(slot) == generation:  # and was not lost again
                        del copies.lost[slot]
        copies.counters.remote_lost_frames = len(copies.lost)
