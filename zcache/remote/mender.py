"""The mender: all that is done for copies beside reading and writing them, in a thread of its own.

Each turn it looks after every peer: connects those that are not connected, greets those that are
new or have changed, and every `HEARTBEAT_SECONDS` asks each whether it still is what it was, how
much it may hold, and says there who we are. Then it does some of what is due, for a few
milliseconds:

- copies that nobody wants are removed (`zcache.remote.sweeper`);
- where an incarnation is gone, its copies are struck out, and made again at another peer from the
  copy that is left (`zcache.remote.remirror`). Where only the process is another (a failover, a
  restart from a snapshot), each copy is looked for. A peer that is out of reach for `GONE_SECONDS`
  is taken for gone when a third can have the copies; what it held is still asked for if there is
  nothing else.

It waits for engines, one after the other: `peer.ASK_SECONDS` at most for each answer, and for each
connection `peer.CONNECT_SECONDS` at each address where the engine may be. Where no address is known
yet, it waits for the name service, for as long as that takes. Locking: one turn at a time, and none
after the farewell; `Peer.writing` of one peer, while a copy is sent there; `Copies.lock` for
moments.
"""

import contextlib
import errno
import math
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final

from zcache.clock import Clock
from zcache.remote.accounts import account_of, quota_key
from zcache.remote.engines import Engines
from zcache.remote.mended import Mended
from zcache.remote.peer import Changed, Identity, Peer, fields_of, number_of
from zcache.remote.remirror import Remirror
from zcache.remote.resp import Refused
from zcache.remote.sweeper import Sweeper
from zcache.tiers.backoff import Backoff
from zcache.tiers.health import describe

#: Of each turn, for what can wait: half of the time between two.
WORK_SECONDS: Final = 0.025
HEARTBEAT_SECONDS: Final = 2.0
#: A peer that comes back has its copies still, and to make them again costs the others their size:
#: a restart or a short cut is waited for.
GONE_SECONDS: Final = 30.0
#: For the first try to connect them all, at the start; a successor's pages wait for it.
START_SECONDS: Final = 3.0
#: What is missing for less than that is under way.
MISSING_SECONDS: Final = 1.0
#: Room that has been too little for less than that is not: copies that are under way, or yet to be
#: removed, are counted as others'.
SHORT_SECONDS: Final = 10.0
#: One in `1 << SHORT_SHIFT` of what was promised may lack room without a word, for the same reason.
SHORT_SHIFT: Final = 5
#: Of an engine's maxmemory, what it is left for itself: buffers, fragmentation.
SPARE_SHIFT: Final = 5


class _Lasting:
    """For how long something has been so without a break."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None

    def note(self, is_so: bool, is_old: bool = False) -> None:
        """Whether it is so now. `is_old`: and has been for longer than anybody asks."""
        if not is_so:
            self._since = None
        elif is_old:
            self._since = -math.inf
        elif self._since is None:
            self._since = self._clock.now()

    def has_been_for(self, seconds: float) -> bool:
        """As far as was noted."""
        since = self._since  # which may end while somebody asks
        return since is not None and self._clock.now() - since >= seconds


class Mender:
    """Of the copies of `tier`."""

    def __init__(self, tier: Mended, engines: Engines, clock: Clock, report: Callable[[str], None]) -> None:
        self._tier = tier
        self._copies = copies = tier.copies
        self._engines = engines
        self._clock = clock
        self._report = report
        self._host = socket.gethostname()
        count = len(copies.peers)
        self._connecting = [Backoff(clock) for _ in range(count)]
        self._heard = [0.0] * count  # when each was heard of last
        self._down_since: list[float | None] = [clock.now()] * count
        self._why_down = ["not connected yet"] * count
        self._was_up = [False] * count  # ever
        self._evicted = [0] * count  # keys that each has thrown out, as it said last
        self._is_wordless = [False] * count  # whose word is missing, and cannot be put back
        copies.wanted = tier.wanted_copies
        self._remirror = Remirror(copies, tier.is_used, clock)
        self._sweeper = Sweeper(copies, tier.is_used, clock)
        self._turn = threading.Lock()
        self._is_over = False
        self._unforeseen = ""  # the last thing that it has met and should not have
        self._missing = _Lasting(clock)  # copies are
        self._doubts = 0  # of which it has taken note
        self._short = _Lasting(clock)  # engines have too little room

    # -- a turn
    # ---------------------------------------------------------------------------------------------

    def work(self) -> None:
        """One turn. Called by one thread, again and again; it outlives whatever it meets."""
        with self._turn, self._going_on():
            if not self._is_over:
                self._take_turn()

    def _take_turn(self) -> None:
        self._see_nodes()
        for peer in sorted(self._copies.peers, key=lambda peer: self._connecting[peer.lane].failures):
            with self._going_on():
                self._look_after(peer)  # those that answer before those that are waited for
            peer.is_gone = self._is_gone(peer)
        ends = self._clock.now() + WORK_SECONDS
        self._tier.spare_work(lambda: self._clock.now() < ends)
        self._sweeper.remove_dead(ends)
        self._remirror.work(ends)
        self._sweeper.sweep(ends)
        doubts, is_doubtful = self._copies.doubts, self._has_doubts()
        self._missing.note(is_doubtful or self._tier.missing_copies() > 0, is_old=is_doubtful)
        self._doubts = doubts
        promised = self._tier.limit_slots
        self._short.note(self._tier.promised_room() < promised - (promised >> SHORT_SHIFT))

    def connect_all(self) -> None:
        """At the start: one try for each peer, while there is time."""
        ends = self._clock.now() + START_SECONDS
        with self._going_on():
            self._engines.refresh()  # a successor has no map of the Cluster yet
            self._see_nodes()
        for peer in self._copies.peers:
            if self._clock.now() < ends:
                with self._going_on():
                    self._look_after(peer)

    def _has_doubts(self) -> bool:
        """Whether what an engine still has is being looked for, or was in this turn. What is found
        missing then is not just under way."""
        return bool(self._copies.doubtful) or self._copies.doubts != self._doubts

    @property
    def is_short(self) -> bool:
        """Whether engines have had less room than was promised, for a while."""
        return self._short.has_been_for(SHORT_SECONDS)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Whatever is met here, what comes after it is done; it is noted as not foreseen."""
        try:
            yield
        except Exception as error:
            what = describe(error)
            if what != self._unforeseen:
                self._report(f"WARNING: what looks after engines met something unforeseen: {what}")
            self._unforeseen = what

    def troubles(self) -> list[str]:
        """What is wrong with engines, in words."""
        found = []
        for peer in self._copies.peers:
            since = self._down_since[peer.lane]
            if since is not None:
                ago = self._clock.now() - since
                found.append(f"remote {peer.name}: out of reach for {ago:.0f} s ({self._why_down[peer.lane]})")
            elif peer.refusal and not peer.refusal.startswith("OOM"):  # to be full is no trouble
                found.append(f"remote {peer.name}: takes no frames ({peer.refusal})")
        found += self._engines.troubles()
        for peer in self._copies.peers:
            if peer.is_up and peer.lane in self._copies.doubtful and self._copies.at[peer.lane]:
                found.append(f"remote {peer.name}: what it still has is being looked for: stop no other engine yet")
        if self._remirror.has_close:
            found.append("frames may have both copies at one node of the Cluster: stop none of its nodes yet")
        missing = self._tier.missing_copies()
        if missing > 0 and (self._missing.has_been_for(MISSING_SECONDS) or self._has_doubts()):
            found.append(f"{missing} second copies are missing at engines: stop no other engine yet")
        if self._unforeseen:
            found.append(f"what looks after engines met something that it did not foresee ({self._unforeseen})")
        if lost := self._copies.counters.remote_lost_frames:
            found.append(f"{lost} frames were at engines that have lost them: reads of their pages fail")
        return found

    def farewell(self, seconds: float) -> None:
        """The swap is over: nothing of it is to stay, as far as that can be had in so many seconds,
        and there are no more turns."""
        ends = self._clock.now() + seconds
        self._is_over = True
        if self._turn.acquire(timeout=seconds):
            try:
                self._sweeper.remove_all(ends)
            finally:
                self._turn.release()

    # -- each peer
    # ---------------------------------------------------------------------------------------------

    def _look_after(self, peer: Peer) -> None:
        """Raises what was not foreseen; it is out of reach then, too."""
        lane = peer.lane
        connecting = self._connecting[lane]
        if peer.moved:
            peer.moved = False
            self._engines.refresh()
            peer.disconnect()
            peer.identity = None
            peer.is_up = False
        if peer.is_up and peer.is_connected() and self._clock.now() - self._heard[lane] < HEARTBEAT_SECONDS:
            return
        if not connecting.begin_try():
            return
        try:
            if peer.identity is None or not peer.is_up:
                self._greet(peer)
            if not peer.is_connected():
                self._connect(peer)
            try:
                self._hear(peer)
            except Changed:  # greeted anew at once: what it still has can be asked for
                self._greet(peer)
                self._hear(peer)
        except Exception as error:
            self._is_down(peer, error)
            if not isinstance(error, OSError):
                raise
        else:
            connecting.succeeded()
            if not peer.is_up:
                if self._was_up[lane]:
                    self._report(f"remote {peer.name}: is back")
                peer.is_up = self._was_up[lane] = True
                self._down_since[lane] = None
                self._copies.is_mending_due = True
                peer.trouble.succeeded()

    def _see_nodes(self) -> None:
        """Which lanes die together, as the Cluster is now; if others do than before, copies are to
        be moved."""
        for peer in self._copies.peers:
            node = self._engines.node_of(peer) or peer
            if node != peer.node:
                peer.node = node
                self._copies.is_mending_due = True
                self._remirror.has_close |= any(o.node == node for o in self._copies.peers if o is not peer)

    def _greet(self, peer: Peer) -> None:
        identity = peer.greet()
        if other := self._same_as(peer, identity):
            why = f"is the same engine as {other.name}, or a copy of it; two copies there are lost together"
            raise OSError(errno.EEXIST, why)
        if why := self._engines.why_not(peer):
            raise OSError(errno.EPERM, why)
        self._copies.settle(peer, identity)  # before anything can be written there
        if not peer.number:
            raise OSError(errno.ENOSPC, "it has been restarted more often than can be told apart")
        peer.connect(identity)

    def _same_as(self, peer: Peer, identity: Identity) -> Peer | None:
        """Which other one that is there, or may come back soon, says that it is the same, or has
        its memory."""
        for other in self._copies.peers:
            if other is peer:
                continue
            if not other.is_up or other.identity is None:
                if other.is_copied_as(identity) and not self._is_gone(other):
                    return other
                continue
            is_alone = not (peer.url.is_cluster or other.url.is_cluster)  # whose lanes may share a process
            if identity.word == other.identity.word or (is_alone and identity.run == other.identity.run):
                return other
        return None

    def _connect(self, peer: Peer) -> None:
        """Those of its connections that are not there; if it is another engine by now, it has to be
        greeted."""
        assert peer.identity
        try:
            peer.connect(peer.identity)
        except Changed:
            self._greet(peer)

    def _hear(self, peer: Peer) -> None:
        """Is it there, and what it was; and how much may it hold?"""
        lane, copies = peer.lane, self._copies
        word = peer.ask("GET", peer.prefix + b"word")
        if word is None and peer.identity:
            word = self._put_back(peer, b"%016x" % peer.identity.word)
        if not (peer.identity and isinstance(word, bytes) and word == b"%016x" % peer.identity.word):
            peer.identity = None
            raise Changed(errno.ESTALE, "it has forgotten what it held")
        memory = fields_of(peer.ask("INFO", "memory", "stats"))  # several at once: Redis 7
        own_bytes = copies.at[lane] * copies.paid_bytes
        used, most = (number_of(memory.get(name)) or 0 for name in ("used_memory", "maxmemory"))
        peer.foreign_bytes = max(used - own_bytes, 0)
        limits = []
        if most:
            free = most - (most >> SPARE_SHIFT) - used
            sharers = sum(other.node == peer.node for other in copies.peers)
            limits.append(max(own_bytes + (free // sharers if free > 0 else free), 0))
        with contextlib.suppress(Refused):  # not ours to read, or no number
            quota = number_of(self._engines.ask_where_it_is(peer, quota_key(peer.url.user)))
            if quota is not None:
                limits.append(quota // self._engines.lanes_of(peer))
        evicted = number_of(memory.get("evicted_keys")) or 0
        if evicted > self._evicted[lane] and copies.wanted > 1:
            copies.doubt(peer)
        self._evicted[lane] = evicted
        peer.limit_bytes = min(limits, default=None)
        peer.refusal = self._engines.why_not_any_more(memory)
        with contextlib.suppress(Refused):  # it is full, say; what it has can be read
            peer.ask("HSET", peer.prefix + b"account", *account_of(self._host, copies, peer))
        self._heard[lane] = self._clock.now()

    def _put_back(self, peer: Peer, word: bytes) -> bytes:
        """Somebody has removed the word of a process that has had it, and perhaps more: all copies
        there are looked for."""
        if not self._is_wordless[peer.lane]:
            self._copies.doubt(peer)
        self._is_wordless[peer.lane] = True
        with contextlib.suppress(Refused):  # it is full; what it has can be read
            peer.ask("SET", peer.prefix + b"word", word, "NX")
            self._is_wordless[peer.lane] = False
        return word

    def _is_down(self, peer: Peer, error: Exception) -> None:
        lane = peer.lane
        self._connecting[lane].failed(describe(error))
        peer.trouble.failed(describe(error))
        self._why_down[lane] = error.text if isinstance(error, Refused) else describe(error)
        if peer.is_up or self._down_since[lane] is None:
            self._down_since[lane] = self._clock.now()
            self._report(f"WARNING: remote {peer.name}: is out of reach ({self._why_down[lane]})")
        peer.is_up = False
        peer.disconnect()
        self._engines.refresh()

    def _is_gone(self, peer: Peer) -> bool:
        """For so long that its copies are to be made again."""
        since = self._down_since[peer.lane]
        return since is not None and self._clock.now() - since >= GONE_SECONDS
