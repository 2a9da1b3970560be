"""Reading: frames fetched from the copies that there are.

It is bounded. The copy that promises most is asked for `HEDGE_SECONDS`; then the other one for up
to `LAST_SECONDS` (if it is in no trouble), and then the first again, until `READ_SECONDS` are over.
A peer that was too slow once is asked last until it has had its rest. An engine that says that it
has no such key has lost the copy; it is not asked again.

What a copy is to be, is not known here but to the seals. When what was read is wrong, all copies
are read, and told to whoever knows; a wrong one beside a right one is given up, and so made anew.

Locking: none; what is known of copies changes under `Copies.lock`. Cost: small objects for each
transfer.
"""

from collections.abc import Callable, Sequence
from typing import Final

from zcache.remote.copies import Copies
from zcache.remote.peer import Peer
from zcache.remote.tables import TAIL_BYTES
from zcache.tiers.health import describe

#: For the copy that is asked first, if there is another. On loopback a frame takes 0.1 ms, and with
#: 1 ms of delay 1.3: who takes 50 ms has met with something else.
HEDGE_SECONDS: Final = 0.05
#: For the other one.
LAST_SECONDS: Final = 1.0
#: For all of them together.
READ_SECONDS: Final = 2.0

_NOWHERE: Final = "no engine is known to have it"


class Reading:
    """From `copies`, by any number of threads."""

    def __init__(self, copies: Copies) -> None:
        self.hedge_seconds = HEDGE_SECONDS
        self._copies = copies

    def fetch(
        self, slots: Sequence[int], frames: Sequence[memoryview], bound_seconds: float = READ_SECONDS
    ) -> tuple[list[int], str]:
        """Fill the buffers from whatever copies there are; returns which of them could not be, and
        why."""
        copies, tables = self._copies, self._copies.tables
        clock, counters = copies.clock, copies.counters
        ends = clock.now() + bound_seconds
        generations = [tables.generation[slot] for slot in slots]
        candidates = [copies.candidates(slot) for slot in slots]
        left = list(range(len(slots)))
        why = ""
        for turn in range(3):
            for peer, those in _by_first(candidates, left):
                # The first is asked again soon if the other one is known to be no better.
                is_doubtful = not turn or (turn == 1 and (peer.trouble.failures > 0 or not peer.is_up))
                is_hedged = is_doubtful and any(len(candidates[index]) > 1 for index in those)
                seconds = min(self.hedge_seconds if is_hedged else LAST_SECONDS, ends - clock.now())
                if seconds <= 0:
                    return left, why
                keys = [copies.key_of(peer, slots[index], generations[index]) for index in those]
                try:
                    found = peer.get_all(keys, [frames[index][:-TAIL_BYTES] for index in those], seconds)
                except OSError as error:
                    why = describe(error)
                    for index in those:
                        candidates[index].append(candidates[index].pop(0))
                    continue
                for index, is_there in zip(those, found, strict=True):
                    if is_there:
                        tables.put_tail(slots[index], frames[index])
                        left.remove(index)
                        counters.remote_gets += 1
                        counters.remote_hedged_gets += turn > 0
                    else:
                        why = f"{peer.name} does not have it any more"
                        copies.miss(slots[index], candidates[index].pop(0)[1], generations[index])
            if not left:
                break
        return left, why or _NOWHERE

    def fetch_right(self, slot: int, frame: memoryview, is_right: Callable[[], bool]) -> str:
        """Fill the buffer from each copy in turn, until `is_right` says so of what is there; then
        those that were wrong are given up. Returns why nothing could be read, or ""."""
        copies, tables = self._copies, self._copies.tables
        generation = tables.generation[slot]
        candidates = copies.candidates(slot)
        ends = copies.clock.now() + READ_SECONDS
        wrong: list[tuple[Peer, int]] = []
        why = _NOWHERE
        for left, (peer, number) in zip(range(len(candidates), 0, -1), candidates, strict=True):
            seconds = max(ends - copies.clock.now(), 0.0) / left
            try:
                [is_there] = peer.get_all([copies.key_of(peer, slot, generation)], [frame[:-TAIL_BYTES]], seconds)
            except OSError as error:
                why = describe(error)
                continue
            if not is_there:
                why = f"{peer.name} does not have it any more"
                copies.miss(slot, number, generation)
                continue
            tables.put_tail(slot, frame)
            copies.counters.remote_gets += 1
            if is_right():
                for other, number in wrong:
                    copies.miss(slot, number, generation)
                    copies.unnamed[other.lane] = True  # it is swept, unless a right one takes its place
                return ""
            wrong.append((peer, number))
        return "" if wrong else why


def _by_first(candidates: Sequence[Sequence[tuple[Peer, int]]], left: Sequence[int]) -> list[tuple[Peer, list[int]]]:
    groups: dict[int, tuple[Peer, list[int]]] = {}
    for index in left:
        if candidates[index]:
            peer = candidates[index][0][0]
            groups.setdefault(peer.lane, (peer, []))[1].append(index)
    return list(groups.values())
