"""A peer: one engine that holds copies of our frames, or one lane of a Cluster.

In a Cluster a *lane* is a hash tag: all keys with that tag are in one of the engine's 16,384 slots,
and so at one primary. Which one, the Cluster says, and may say otherwise after a failover or when
slots are moved: the lane then goes where its tag goes. An engine that stands alone is one lane.

Connections are opened by one thread, the mender's, and by no other: a page's read takes one that is
there or does without. On each of them the engine is asked which process it is (`run_id`) and for
the word that was left there; if either is not what it was, none of the connections is used until
the peer was greeted anew, and it is known which copies it may still have (`zcache.remote.tables`).

What fails, or takes too long, closes its connection and begins a *trouble* (`Backoff`): until a
rest is over others are asked first.

Locking: a reader's connection is lent (`readers`); the writer's is held with `writing`, also while
its engine is waited for. `trouble`, `refusal` and `moved` are written by readers and flights, too,
without a lock: the last word counts, and the mender asks again. All else is the mender's. Cost: 6
connections and their buffers.
"""

import errno
import hashlib
import os
import re
import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

from zcache.clock import Clock
from zcache.remote.reach import Reach
from zcache.remote.readers import Connected, Readers
from zcache.remote.resp import Refused
from zcache.remote.url import Address, Url
from zcache.tiers.backoff import PATIENCE_SECONDS, Backoff
from zcache.tiers.health import describe

#: Connections for reading, of which one reads at a time (`readers`).
READERS: Final = 4
#: For the answer of an engine to a read, at least. It is `reading.HEDGE_SECONDS`: who takes longer
#: is slow.
TURN_SECONDS: Final = 0.05
#: For a connection to be there, and for what is asked on it first.
CONNECT_SECONDS: Final = 2.0
#: For what the mender asks.
ASK_SECONDS: Final = 2.0
#: As it is left at an engine; none is 0.
_WORD: Final = re.compile(rb"(?!0{16})[0-9a-f]{16}")
#: Refusals after which it is looked for elsewhere. A question is refused for more reasons than a
#: write, whose refusal keeps other writes away until the next heartbeat: while a slot is on its
#: way (ASK) or some are nobody's (CLUSTERDOWN), reads of the lane may go on.
_WRITE_MOVED: Final = ("MOVED", "READONLY")
_MOVED: Final = (*_WRITE_MOVED, "CLUSTERDOWN", "ASK")

_Answer = TypeVar("_Answer")


class Identity(NamedTuple):
    """What an engine said on a connection: its process, and the word that was left there (0: there
    is none)."""

    run: int
    word: int


class Changed(OSError):
    """The engine is not the one that it was."""


class Peer:
    """Lane number `lane`. `where` gives the addresses at which it may be now, the likeliest first;
    `prefix` begins all of its keys."""

    def __init__(
        self,
        lane: int,
        reach: Reach,
        where: Callable[[], Sequence[Address]],
        prefix: bytes,
        clock: Clock,
    ) -> None:
        self.lane = lane
        self.reach = reach
        self.where = where
        self.prefix = prefix
        self._clock = clock
        self.trouble = Backoff(clock)
        self.writing = threading.Lock()
        self.identity: Identity | None = None  # None: it has to be greeted
        self._known: Identity | None = None  # as what it was greeted last
        self.number = 0  # of its incarnation
        self.has_lost_word = False  # when it was greeted last, though it is the process that had it
        self.is_up = False  # greeted, and nothing known against it
        self.node: object = self  # what dies with it: in a Cluster, all lanes that are at one primary
        self.is_gone = False  # out of reach for so long that others are to hold what it held
        self.limit_bytes: int | None = None  # what it may hold of ours; None: what it has room for
        self.foreign_bytes = 0  # what it holds of others
        self.refusal = ""  # why it takes no frames, though it is up
        self.moved = False  # it has told us to ask elsewhere
        self._writer: Connected | None = None
        self._asker: Connected | None = None
        self._readers = Readers(self.name, clock, self._read)

    @property
    def url(self) -> Url:
        """By which it is reached."""
        return self.reach.url

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.url.name} lane {self.lane}" if self.url.is_cluster else self.url.name

    # -- on the path of a page
    # -----------------------------------------------------------------------------------------

    def get_all(self, keys: Sequence[bytes], buffers: Sequence[memoryview], seconds: float) -> list[bool]:
        """Which of the keys are there; their values are then in the buffers. Raises `OSError` after
        so many seconds at the latest, or `TURN_SECONDS` after a connection was free.

        To wait for a connection costs the peer nothing: it is busy, and not slow. So whoever has
        had to wait is given time for the engine's answer, too. With what is left of `seconds` a
        sound connection would be closed, and a sound peer rest. To give the connection back unused
        would be no better: the next try begins behind all others, and where there is no other copy
        a read would fail that could succeed."""
        return self._readers.get_all(keys, buffers, seconds)

    def _read(
        self, connection: Connected, keys: Sequence[bytes], buffers: Sequence[memoryview], ends: float
    ) -> list[bool]:
        """With a connection that is lent, for one or for several."""
        try:
            found = connection.get_all(keys, buffers, max(ends - self._clock.now(), TURN_SECONDS))
        except OSError as error:
            self.failed(error)
            raise
        if self.trouble.failures:
            self.trouble.succeeded()
        return found

    def begin_set(self, keys: Sequence[bytes], values: Sequence[Sequence[memoryview]], seconds: float) -> None:
        """Send them; `writing` is held until `end_set` has said what became of it."""
        if self._writer is None or not self._writer.is_open:
            raise OSError(errno.ENOTCONN, f"{self.name} is not connected")
        try:
            self._writer.begin_set(keys, values, seconds)
        except OSError as error:
            self.failed(error)
            raise

    def end_set(self, seconds: float) -> list[str]:
        """For each key "", or why it was refused."""
        assert self._writer
        try:
            refusals = self._writer.end_set(seconds)
        except OSError as error:
            self.failed(error)
            raise
        self.refusal = next(filter(None, refusals), "")
        if self.trouble.failures:
            self.trouble.succeeded()
        if self.refusal.startswith(_WRITE_MOVED):
            self.moved = True
        return refusals

    def abandon(self) -> None:
        """Whatever was begun on the writer's connection is given up."""
        with self.writing:
            if self._writer:
                self._writer.close()

    def failed(self, error: OSError) -> None:
        """Something that was asked of it did not succeed."""
        self.trouble.failed(describe(error))
        if isinstance(error, Refused) and error.word in _MOVED:
            self.moved = True

    def is_known_dead(self) -> bool:
        """Whether it has been seen to fail for as long as anybody waits."""
        return self.trouble.seen_seconds() >= PATIENCE_SECONDS

    def takes_frames(self) -> bool:
        """Whether a write may be tried now."""
        is_there = self._writer is not None and self._writer.is_open
        return self.is_up and is_there and not self.refusal and not self.trouble.rest_seconds()

    # -- the mender's
    # ---------------------------------------------------------------------------------------------

    def ask(self, *words: bytes | str | int) -> object:
        """One command. Raises `OSError`."""
        return self._asked(lambda asker: asker.call(*words, seconds=ASK_SECONDS), may_refuse=True)

    def exist(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each key is there. Raises `OSError`."""
        return self._asked(lambda asker: asker.exist_all(keys, ASK_SECONDS), may_refuse=True)

    def unlink(self, keys: Sequence[bytes]) -> None:
        """Remove keys. Raises `OSError`."""
        self._asked(lambda asker: asker.unlink_all(keys, ASK_SECONDS))

    def fetch(self, keys: Sequence[bytes], buffers: Sequence[memoryview], seconds: float) -> list[bool]:
        """As `get_all`, but no page's read waits for it at a connection. Raises `OSError`."""
        return self._asked(lambda asker: asker.get_all(keys, buffers, seconds))

    def is_connected(self) -> bool:
        """Whether all of its connections are there."""
        held = (self._writer, self._asker)
        return len(self._readers) == READERS and all(connection and connection.is_open for connection in held)

    def greet(self) -> Identity:
        """Let go of all connections, and ask the engine, on a new one, who it is. Raises
        `OSError`."""
        self.disconnect()
        self._asker = self._open()
        identity = self._identify(self._asker)
        is_same = self._known is not None and self._known.run == identity.run
        self.has_lost_word = is_same and (not identity.word or self.has_lost_word)
        return identity if identity.word else self._leave_word(self._asker, identity)

    def is_copied_as(self, identity: Identity) -> bool:
        """Whether that is another process, with the memory of the one that this was."""
        known = self._known
        return known is not None and known.word == identity.word and known.run != identity.run

    def _leave_word(self, connection: Connected, found: Identity) -> Identity:
        """A new one; or, at a process that has had one, the same: somebody has removed it, and what
        else they have removed is yet to be seen. At an engine that is full it stays away: that may
        have what it had, and each copy is looked for."""
        known = self._known
        is_same = known is not None and known.run == found.run
        word = known.word if known and is_same else int.from_bytes(os.urandom(8), "little") | 1  # which is not 0
        try:
            connection.call("SET", self.prefix + b"word", f"{word:016x}", "NX", seconds=ASK_SECONDS)
        except Refused:
            if known is None:
                raise
            return Identity(found.run, known.word)
        left = self._identify(connection)
        if not left.word:  # which would be no incarnation
            raise OSError(errno.EPROTO, f"{self.name}: does not keep the word that was left there")
        return left

    def connect(self, identity: Identity) -> None:
        """Have all connections, to the engine that it was greeted as. Raises `OSError`; `Changed`
        if it is another."""
        if self._asker is None or not self._asker.is_open:
            self._asker = self._proven(identity)
        if self._writer is None or not self._writer.is_open:
            writer = self._proven(identity)
            with self.writing:
                self._writer = writer
        while len(self._readers) < READERS:
            reader = self._proven(identity)
            self._readers.add(reader)
        self.identity = self._known = identity
        self.has_lost_word = False

    def disconnect(self) -> None:
        """Let go of all connections; of those that read, as soon as they have."""
        self._readers.close()
        with self.writing:
            if self._writer:
                self._writer.close()
            self._writer = None
        if self._asker:
            self._asker.close()
        self._asker = None

    def _asked(self, question: Callable[[Connected], _Answer], *, may_refuse: bool = False) -> _Answer:
        """On the connection that is for this. If the engine `may_refuse`, that is no trouble."""
        if self._asker is None or not self._asker.is_open:
            raise OSError(errno.ENOTCONN, f"{self.name} is not connected")
        try:
            return question(self._asker)
        except OSError as error:
            if not (may_refuse and isinstance(error, Refused)):
                self.failed(error)
            raise

    def _proven(self, identity: Identity) -> Connected:
        connection = self._open()
        try:
            found = self._identify(connection)
            if found.run != identity.run or found.word not in (0, identity.word):  # 0: somebody has removed it
                raise Changed(errno.ESTALE, f"{self.name} is not the engine that it was")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self) -> Connected:
        last: OSError = OSError(errno.EHOSTUNREACH, f"{self.name}: nobody knows where it is")
        for address in self.where():
            try:
                return self.reach.connect(address, CONNECT_SECONDS)
            except OSError as error:
                last = error
        raise last

    def _identify(self, connection: Connected) -> Identity:
        info = connection.call("INFO", "server", seconds=ASK_SECONDS)
        run_id = fields_of(info).get("run_id", "")
        word = connection.call("GET", self.prefix + b"word", seconds=ASK_SECONDS)
        run = int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=8).digest(), "little")
        if word is None:
            return Identity(run, 0)
        if not isinstance(word, bytes) or not _WORD.fullmatch(word):
            raise OSError(errno.EPROTO, f"{self.name}: the word there is none of ours")
        return Identity(run, int(word, 16))


def fields_of(info: object) -> dict[str, str]:
    """What INFO says, by name."""
    if not isinstance(info, bytes):
        return {}
    lines = info.decode("ascii", "replace").splitlines()
    return {name: shown(value) for name, colon, value in (line.partition(":") for line in lines) if colon}


def shown(text: str) -> str:
    """What an engine or a machine has written, for a terminal: nothing in it is a command."""
    return text if text.isprintable() else ascii(text)


def number_of(text: object, most_digits: int = 18) -> int | None:
    """The same as a number; None: it is none, or longer than that. (Python's own idea of a number
    is a wide one.)"""
    if not isinstance(text, str | bytes) or len(text) > most_digits or not (text.isascii() and text.isdigit()):
        return None
    return int(text)
