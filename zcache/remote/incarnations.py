"""Incarnations: which peer has what an engine held, by the word that was left there.

A word is known again wherever it is met: a successor may be given its engines in another order, or
others. Until all peers were met once, what is nobody's by its word is hoped to be with one that was
not met yet: copies that are out of reach now are not given up. After that it is gone.

What each holds is counted over all slots once, at the start (2.2 ms for each that holds anything,
and a million slots), and kept exact from then on: a greeting is short, for `Copies.lock` is wanted
under the store's.

Locking: `Copies.lock`, its owner's. Cost: a reference and a count for each of 255 numbers.
"""

from collections.abc import Sequence

from zcache.remote.peer import Identity, Peer
from zcache.remote.tables import INCARNATIONS, NOBODY, Tables


class Incarnations:
    """Of `peers`. `at` is how many copies each of them holds."""

    def __init__(self, tables: Tables, peers: Sequence[Peer]) -> None:
        self._tables = tables
        self._peers = peers
        self._holder: list[Peer | None] = [None] * INCARNATIONS
        self._unmet = list(peers)
        self.at = [0] * len(peers)
        self._held = [0] * INCARNATIONS
        for number in self._known():
            if tables.lanes[number] >= len(peers):
                tables.lanes[number] = 0
            self._holder[number] = peers[tables.lanes[number]]
        unseen = 2 * (tables.slot_count + 1) - tables.count_of(NOBODY)
        for number in reversed(self._known()):  # the latest hold all, as a rule
            if not unseen:
                break
            held = tables.count_of(number)
            self.count(number, held)
            unseen -= held

    def holder(self, number: int) -> Peer | None:
        """Who has what that incarnation had; None: nobody, it is gone."""
        return self._holder[number] if number else None

    def count(self, number: int, change: int) -> None:
        """Its copies have become more or fewer. What is gone is nobody's."""
        self._held[number] += change
        if peer := self.holder(number):
            self.at[peer.lane] += change

    def met(self, peer: Peer, identity: Identity) -> None:
        """A peer was greeted: it has what was held under that word, and nothing else."""
        tables = self._tables
        if peer in self._unmet:
            self._unmet.remove(peer)
        for number in self._known():
            if tables.words[number] == identity.word:
                tables.lanes[number] = peer.lane
            elif tables.lanes[number] == peer.lane:
                self._holder[number] = self._unmet[0] if self._unmet else None
                if self._unmet:
                    tables.lanes[number] = self._unmet[0].lane
        taken = {other.number for other in self._peers if other is not peer}
        taken |= {number for number, held in enumerate(self._held) if held}
        peer.number = tables.number_of(peer.lane, identity.word, identity.run, taken)
        for number in self._known():
            if tables.words[number] == identity.word:
                self._holder[number] = peer
        at = [0] * len(self.at)
        for number in self._known():
            if holder := self._holder[number]:
                at[holder.lane] += self._held[number]
        self.at[:] = at  # at once: others look at it without the lock

    def unproven(self) -> int:
        """Copies of incarnations that peers have been before: each has to be looked for."""
        peers = ((number, self._holder[number]) for number, held in enumerate(self._held) if held > 0)
        return sum(self._held[number] for number, peer in peers if peer and peer.number not in (0, number))

    def _known(self) -> list[int]:
        return [number for number in range(1, INCARNATIONS) if self._tables.words[number]]
