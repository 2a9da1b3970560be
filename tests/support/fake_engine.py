"""Engines that are a dict, in no process and at no network: for worlds of millions of operations
that a seed repeats.

`FakeNetwork` has engines at addresses, and `connect` makes a `FakeConnection` to whichever is
there: what `zcache.remote.resp.Connection` does with a real one, it does with these
(`tests/unit/remote/test_connection_contract.py` runs both). Time is a `FakeClock`'s: an exchange
takes some, and one that fails takes as long as its caller waits.

What an engine does to those who rely on it: it is killed, and starts again empty or from an old
snapshot; it is paused, or cut off, and what was sent to it is executed later, after what came by
newer connections, or never; a replica takes its place, and lacks what it was the last to
acknowledge; the old primary goes on for a while nevertheless; it is full; it is slow; it forgets a
key; it hangs up in the middle of a batch. `lost` has what it took from us that way.

Locking: one lock for the network, around each command.
"""

import errno
import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tests.support.clock import FakeClock
from zcache.remote.cluster import SLOTS, slot_of_tag
from zcache.remote.resp import (
    MAX_ASKED,
    MAX_IN_FLIGHT,
    MAX_IN_FLIGHT_BYTES,
    MAX_REPLY_BYTES,
    ProtocolError,
    Refused,
    Reply,
)
from zcache.remote.url import DEFAULT_USER, Address

#: What each value costs beside its bytes, as `zcache.remote.copies` counts.
OVERHEAD_BYTES: Final = 488
#: Keys that an engine with replicas has acknowledged, and its replica does not have, at most.
MOST_BEHIND: Final = 6

Command = tuple[bytes, ...]
Hash = dict[bytes, bytes]
Answer: TypeAlias = "Reply | Refused"
_ZSET: Final = Refused("WRONGTYPE Operation against a key holding the wrong kind of value")


class FakeEngine:
    """One process. `state` is up, paused, cut or dead."""

    def __init__(self, network: "FakeNetwork", name: str, data: dict[bytes, bytes | Hash] | None = None) -> None:
        self.network = network
        self.name = name  # its address
        self.run_id = f"{network.rng.getrandbits(160):040x}"
        self.data: dict[bytes, bytes | Hash] = dict(data or {})
        self._numbers: dict[bytes, int] = {key: next(network.numbers) for key in self.data}  # where SCAN finds it
        self.used_bytes = sum(map(_cost, self.data.values()))
        self.foreign_bytes = 0
        self.state = "up"
        self.is_loading = False
        self.late: list[deque[Command]] = []  # a queue for each connection that is no more
        self.connections: list[FakeConnection] = []
        self.snapshot: dict[bytes, bytes | Hash] = {}  # on its disk
        self.replica: dict[bytes, bytes | Hash] = dict(self.data)
        self._behind: deque[tuple[bytes, bytes | Hash | None]] = deque()  # what the replica lacks
        self.evicted_keys = 0
        self.lost: set[bytes] = set()  # keys that it had, and nobody has removed
        # Faults of an engine that is up, each with a probability.
        self.resets = self.delays = 0.0
        self.longest_delay_seconds = 0.0

    def copy(self, network: "FakeNetwork") -> "FakeEngine":
        """As it is now, with no connection: what was sent on each is still to be executed."""
        other = FakeEngine(network, self.name)
        other.run_id, other.state, other.is_loading = self.run_id, self.state, self.is_loading
        other.data, other._numbers = dict(self.data), dict(self._numbers)
        other.used_bytes, other.foreign_bytes = self.used_bytes, self.foreign_bytes
        inboxes = [*self.late, *(connection.inbox for connection in self.connections)]
        other.late = [deque(inbox) for inbox in inboxes if inbox]
        other.snapshot, other.replica, other._behind = dict(self.snapshot), dict(self.replica), deque(self._behind)
        other.lost, other.evicted_keys = set(self.lost), self.evicted_keys
        other.resets, other.delays, other.longest_delay_seconds = self.resets, self.delays, self.longest_delay_seconds
        return other

    @property
    def is_well(self) -> bool:
        """Nothing is the matter with it now."""
        return self.state == "up" and not (self.is_loading or self.resets or self.delays)

    # -- what happens to it
    # ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write what it holds to its disk."""
        self.snapshot = dict(self.data)

    def forget(self, key: bytes) -> None:
        """As if somebody had removed it."""
        if key in self.data:
            self._remove(key)
            self.lost.add(key)

    def evict(self, key: bytes) -> None:
        """As a `maxmemory-policy` would have it."""
        self.forget(key)
        self.evicted_keys += 1

    def give_away(self, key: bytes, other: "FakeEngine") -> None:
        """Its slot belongs to another from now on."""
        other.take(key, self.data[key])
        self._remove(key)

    def take(self, key: bytes, value: bytes | Hash) -> None:
        """From the one that it was at."""
        self._store(key, value)

    def end(self) -> None:
        """Its process is no more, and those who are connected are told so."""
        self.state = "dead"
        self.lost.update(self.data)
        self.late.clear()
        self.connections.clear()

    def lag_all(self) -> None:
        """The replica has caught up."""
        while self._behind:
            self._catch_up()

    def heal(self) -> None:
        """What is dead stays so."""
        self.resets = self.delays = 0.0
        self.is_loading = False
        self.foreign_bytes = 0
        if self.state != "dead":
            self.state = "up"

    def run_late(self, share: float = 1.0) -> None:
        """What was sent to it long ago is executed now, or some of it: in its order for each
        connection, and in any for several."""
        rng = self.network.rng
        with self.network.lock:
            while self.late and rng.random() < share:
                index = int(rng.random() * len(self.late))
                inbox = self.late[index]
                if inbox:
                    self.execute(inbox.popleft(), is_late=True)
                if not inbox:
                    del self.late[index]

    # -- commands
    # ---------------------------------------------------------------------------------------------

    def execute(self, command: Command, is_late: bool = False) -> Answer:
        """One command, at once, and what is answered."""
        with self.network.lock:
            if self.late and not is_late:
                self.run_late(0.2)
            word, rest = command[0].upper(), command[1:]
            handler: Callable[..., Answer] | None = getattr(self, f"_do_{word.decode().lower()}", None)
            if handler is None:
                return Refused(f"ERR unknown command '{command[0].decode()}', with args beginning with: ")
            if self.is_loading and word != b"INFO":
                return Refused("LOADING Redis is loading the dataset in memory")
            if word in _KEYED and not self.network.owns(self, rest[0]):
                return self.network.moved(rest[0])
            if word in _GROWING and self._is_full():
                return Refused("OOM command not allowed when used memory > 'maxmemory'.")
            if word == b"UNLINK":
                for key in rest:
                    if key in self.data:
                        self.network.unlinked(self, key, is_late)
            return handler(*rest)

    def _is_full(self) -> bool:
        most = self.network.maxmemory
        return bool(most) and self.used_bytes + self.foreign_bytes > most

    def _do_get(self, key: bytes) -> Answer:
        value = self.data.get(key)
        return _ZSET if isinstance(value, dict) else value

    def _do_set(self, key: bytes, value: bytes, *options: bytes) -> Answer:
        if b"NX" in options and key in self.data:
            return None
        self._store(key, value)
        return b"OK"

    def _do_hset(self, key: bytes, *fields: bytes) -> Answer:
        held = self.data.get(key, {})
        if not isinstance(held, dict):
            return _ZSET
        given = dict(zip(fields[::2], fields[1::2], strict=True))
        self._store(key, held | given)
        return len(given.keys() - held.keys())

    def _do_exists(self, *keys: bytes) -> Answer:
        return sum(key in self.data for key in keys)

    def _do_unlink(self, *keys: bytes) -> Answer:
        return sum(self._remove(key) for key in keys)

    def _do_scan(self, cursor: bytes, *options: bytes) -> Answer:
        """From the key with that number on."""
        given = {name.upper(): value for name, value in zip(options[::2], options[1::2], strict=True)}
        pattern, count = given.get(b"MATCH", b"*"), int(given.get(b"COUNT", b"10"))
        assert pattern.endswith(b"*") and not set(b"*?[\\") & set(pattern[:-1]), "patterns are prefixes here"
        numbers = self._numbers
        looked_at = list(itertools.islice((key for key in list(self.data) if numbers[key] >= int(cursor)), count + 1))
        after = numbers[looked_at.pop()] if len(looked_at) > count else 0
        return [str(after).encode(), [key for key in looked_at if key.startswith(pattern[:-1])]]

    def _do_info(self, *_sections: bytes) -> Answer:
        network = self.network
        fields = {
            "redis_version": "7.0.15",
            "run_id": self.run_id,
            "used_memory": self.used_bytes + self.foreign_bytes,
            "maxmemory": network.maxmemory,
            "maxmemory_policy": "noeviction",
            "evicted_keys": self.evicted_keys,
            "loading": int(self.is_loading),
            "aof_enabled": 0,
            "role": "master",
            "cluster_enabled": int(network.is_cluster),
        }
        return "".join(f"{name}:{value}\r\n" for name, value in fields.items()).encode()

    def _do_config(self, _get: bytes, name: bytes) -> Answer:
        known = {b"save": b"", b"cluster-require-full-coverage": b"no", b"cluster-allow-reads-when-down": b"yes"}
        return [name, known[name]] if name in known else []

    def _do_cluster(self, what: bytes) -> Answer:
        if not self.network.is_cluster:
            return Refused("ERR This instance has cluster support disabled")
        return b"cluster_state:ok\r\n" if what == b"INFO" else self.network.cluster_slots()

    def _do_ping(self) -> Answer:
        return b"PONG"

    def _store(self, key: bytes, value: bytes | Hash) -> None:
        self.used_bytes += _cost(value) - (_cost(self.data[key]) if key in self.data else 0)
        self.data[key] = value
        self._numbers.setdefault(key, next(self.network.numbers))
        self.lost.discard(key)
        self._replicate(key, value)

    def _remove(self, key: bytes) -> bool:
        value = self.data.pop(key, None)
        if value is None:
            return False
        self.used_bytes -= _cost(value)
        del self._numbers[key]
        self._replicate(key, None)
        return True

    def _replicate(self, key: bytes, value: bytes | Hash | None) -> None:
        self._behind.append((key, value))
        while len(self._behind) > self.network.rng.random() * MOST_BEHIND:
            self._catch_up()

    def _catch_up(self) -> None:
        key, value = self._behind.popleft()
        if value is None:
            self.replica.pop(key, None)
        else:
            self.replica[key] = value


_KEYED: Final = {b"GET", b"SET", b"HSET", b"EXISTS", b"UNLINK"}
_GROWING: Final = {b"SET", b"HSET"}


class FakeNetwork:
    """Engines at addresses: paths of Unix sockets, or with `is_cluster` the nodes of one."""

    def __init__(self, clock: FakeClock, rng: random.Random, *, is_cluster: bool = False) -> None:
        self.clock, self.rng, self.is_cluster = clock, rng, is_cluster
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)  # of keys, for SCAN
        self.maxmemory = 0
        self.latency_seconds = 1e-4  # of each exchange
        self.at: dict[str, FakeEngine] = {}
        self.owners: list[str] = []  # in a Cluster: the addresses with equal shares of the slots
        self.unlinked: Callable[[FakeEngine, bytes, bool], None] = lambda _engine, _key, _is_late: None
        self.in_exchange: Callable[[bool], None] = lambda _is_write: None  # between a request and its answer

    def copy(self) -> "FakeNetwork":
        """As it is now, for another server."""
        other = FakeNetwork(self.clock, self.rng, is_cluster=self.is_cluster)
        other.numbers = itertools.count(next(self.numbers))
        other.maxmemory, other.latency_seconds, other.owners = self.maxmemory, self.latency_seconds, [*self.owners]
        other.at = {name: engine.copy(other) for name, engine in self.at.items()}
        return other

    def add(self, name: str) -> FakeEngine:
        """An engine, empty, at an address where there is none, or was one."""
        engine = self.at[name] = FakeEngine(self, name)
        if self.is_cluster and name not in self.owners:
            self.owners.append(name)
        return engine

    def restart(self, name: str, *, is_from_snapshot: bool) -> None:
        """The engine there, dead or not, is another process from now on; a snapshot is old."""
        old = self.at[name]
        old.end()
        new = self._replace(old, name, old.snapshot if is_from_snapshot else {})
        new.snapshot = dict(old.snapshot)

    def fail_over(self, name: str, *, is_old_alive: bool) -> None:
        """Its replica has its address from now on, and what it had when it last caught up. Who is
        connected to the old one may go on with that for a while (`end` it), or is told."""
        old = self.at[name]
        self._replace(old, name, old.replica)
        if not is_old_alive:
            old.end()

    def _replace(self, old: FakeEngine, name: str, data: dict[bytes, bytes | Hash]) -> FakeEngine:
        new = self.at[name] = FakeEngine(self, name, data)
        new.lost = old.lost | (old.data.keys() - new.data.keys())  # what comes back from a snapshot was given up
        return new

    def heal(self) -> None:
        """All are there and well; what is dead is started again, empty."""
        for name, engine in [*self.at.items()]:
            engine.heal()
            if engine.state == "dead":
                self.restart(name, is_from_snapshot=False)
            else:
                engine.run_late()

    # -- a Cluster
    # ---------------------------------------------------------------------------------------------

    def owns(self, engine: FakeEngine, key: bytes) -> bool:
        """Whether an engine has a key's slot; in no Cluster it has all."""
        return not self.is_cluster or self._owner(key) == engine.name

    def moved(self, key: bytes) -> Refused:
        """Who has it."""
        return Refused(f"MOVED {_slot_of(key)} {self._owner(key)}")

    def _owner(self, key: bytes) -> str:
        return self.owners[_slot_of(key) * len(self.owners) // SLOTS]

    def take_out(self, name: str) -> None:
        """A primary leaves the Cluster: shares are equal again, and all keys are where they belong;
        then it ends."""
        self.owners.remove(name)
        for engine in [self.at[name], *(self.at[owner] for owner in self.owners)]:
            for key in [key for key in engine.data if not self.owns(engine, key)]:
                engine.give_away(key, self.at[self._owner(key)])
        self.at[name].end()

    def cluster_slots(self) -> Reply:
        """What CLUSTER SLOTS answers."""
        count = len(self.owners)
        shares: list[Reply] = []
        for n, name in enumerate(self.owners):
            host, _, port = name.partition(":")
            node: list[Reply] = [host.encode(), int(port), name.encode(), []]
            shares.append([-(-SLOTS * n // count), -(-SLOTS * (n + 1) // count) - 1, node])
        return shares

    # -- connecting
    # ---------------------------------------------------------------------------------------------

    def connect(
        self,
        address: Address,
        *,
        user: str = DEFAULT_USER,  # noqa: ARG002 (all may do everything here)
        password: str = "",  # noqa: ARG002
        tls: object = None,  # noqa: ARG002
        server_name: str | None = None,  # noqa: ARG002
        seconds: float,
    ) -> "FakeConnection":
        """As `Connection` is made."""
        where = address.sockaddr
        name = where if isinstance(where, str) else f"{where[0]!s}:{where[1]!s}"
        engine = self.at[name]
        if engine.state == "dead":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        if engine.state == "cut":
            self.clock.seconds += seconds
            raise _too_late()
        self.clock.seconds += self.latency_seconds
        return FakeConnection(engine)


class FakeConnection:
    """See `zcache.remote.resp.Connection`."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._network, self._clock = engine.network, engine.network.clock
        self._is_open = True
        self._left_seconds = 0.0
        self._answers: list[Answer] = []  # that have come and were not read
        self._setting: tuple[Sequence[bytes], Sequence[Sequence[memoryview]], int] | None = None
        self.inbox: deque[Command] = deque()  # what the engine has not looked at
        engine.connections.append(self)

    @property
    def is_open(self) -> bool:
        return self._is_open

    def close(self) -> None:
        """What was sent may be executed still."""
        if self._is_open:
            self._end(is_heard=True)

    def get_all(self, keys: Sequence[bytes], buffers: Sequence[memoryview], seconds: float) -> list[bool]:
        self._begin(seconds)
        found: list[bool] = []
        lengths = list(map(len, buffers))
        refusal: Refused | None = None
        while len(found) < len(keys) and refusal is None:
            stop = _part(len(found), lengths)
            self._send([(b"GET", key) for key in keys[len(found) : stop]])
            for value in self._receive(is_write=False):
                if isinstance(value, Refused) and value is not _ZSET:
                    refusal = refusal or value
                found.append(isinstance(value, bytes) and self._fill(buffers[len(found)], value))
        if refusal:
            raise refusal
        return found

    def set_all(self, keys: Sequence[bytes], values: Sequence[Sequence[memoryview]], seconds: float) -> list[str]:
        self.begin_set(keys, values, seconds)
        return self.end_set(seconds)

    def begin_set(self, keys: Sequence[bytes], values: Sequence[Sequence[memoryview]], seconds: float) -> None:
        self._begin(seconds)
        self._setting = keys, values, self._send_set(keys, values, 0)
        if self._engine.state == "up":  # it has begun already
            self._work(int(self._network.rng.random() * (len(self.inbox) + 1)))

    def end_set(self, seconds: float) -> list[str]:
        assert self._setting, "begin_set comes first"
        (keys, values, stop), self._setting = self._setting, None
        self._begin(seconds)
        answers: list[str] = []
        while True:
            for value in self._receive(is_write=True):
                answers.append(value.text if isinstance(value, Refused) else "")
            if stop == len(keys):
                return answers
            stop = self._send_set(keys, values, stop)

    def unlink_all(self, keys: Sequence[bytes], seconds: float) -> int:
        self._begin(seconds)
        count = 0
        for start in range(0, len(keys), MAX_ASKED):
            self._send([(b"UNLINK", *keys[start : start + MAX_ASKED])])
            (said,) = self._receive(is_write=True)
            if isinstance(said, Refused):
                raise said
            assert isinstance(said, int)
            count += said
        return count

    def exist_all(self, keys: Sequence[bytes], seconds: float) -> list[bool]:
        self._begin(seconds)
        found: list[bool] = []
        for start in range(0, len(keys), MAX_ASKED):
            self._send([(b"EXISTS", key) for key in keys[start : start + MAX_ASKED]])
            answers = self._receive(is_write=False)
            if refusal := next((said for said in answers if isinstance(said, Refused)), None):
                raise refusal
            found += [said == 1 for said in answers]
        return found

    def call(self, *words: str | bytes | int, seconds: float) -> Reply:
        self._begin(seconds)
        self._send([tuple(word if isinstance(word, bytes) else str(word).encode() for word in words)])
        (said,) = self._receive(is_write=True)
        if isinstance(said, Refused):
            raise said
        return said

    # -- an exchange
    # ---------------------------------------------------------------------------------------------

    def _begin(self, seconds: float) -> None:
        """With so much time for it. (By its own count: what others wait for by the same clock does
        not make it late.)"""
        if not self._is_open:
            raise OSError(errno.ENOTCONN, "the connection is closed")
        assert not self._setting, "a set is under way"
        self._left_seconds = max(seconds, 0.0)

    def _send(self, commands: Sequence[Command]) -> None:
        if self._engine.state == "dead":
            self._end(is_heard=False)
            raise ConnectionResetError(errno.ECONNRESET, "the engine has closed the connection")
        self.inbox.extend(commands)

    def _send_set(self, keys: Sequence[bytes], values: Sequence[Sequence[memoryview]], start: int) -> int:
        stop = _part(start, [sum(map(len, value)) for value in values])
        those = zip(keys[start:stop], values[start:stop], strict=True)
        self._send([(b"SET", key, b"".join(value)) for key, value in those])
        return stop

    def _work(self, count: int) -> None:
        """The engine answers so many."""
        while count and self.inbox:
            self._answers.append(self._engine.execute(self.inbox.popleft()))
            count -= 1

    def _receive(self, *, is_write: bool) -> list[Answer]:
        """The answers to all that was sent."""
        engine, clock, rng = self._engine, self._clock, self._network.rng
        self._network.in_exchange(is_write)
        if not self._is_open:
            raise OSError(errno.EBADF, "the connection was closed meanwhile")
        delay = self._network.latency_seconds
        if engine.delays and rng.random() < engine.delays:
            delay += rng.random() * engine.longest_delay_seconds
        if engine.state == "up" and engine.resets and rng.random() < engine.resets:
            self._work(int(rng.random() * (len(self.inbox) + 1)))
            self.inbox.clear()
            self._reset()
        if engine.state == "dead":
            self._reset()
        if engine.state != "up" or delay > self._left_seconds:
            is_heard = engine.state != "cut" or rng.random() < 0.5
            clock.seconds += self._left_seconds
            self._end(is_heard=is_heard)
            raise _too_late()
        clock.seconds += delay
        self._left_seconds -= delay
        self._work(len(self.inbox))
        answers, self._answers = self._answers, []
        return answers

    def _reset(self) -> None:
        self._end(is_heard=False)
        raise ConnectionResetError(errno.ECONNRESET, "the engine has closed the connection")

    def _fill(self, buffer: memoryview, value: bytes) -> bool:
        if len(value) > MAX_REPLY_BYTES:
            self._end(is_heard=True)
            raise ProtocolError(f"a value of {len(buffer)} bytes was expected")
        buffer[: len(value)] = value[: len(buffer)]
        return len(value) == len(buffer)

    def _end(self, *, is_heard: bool) -> None:
        self._is_open = False
        self._setting = None
        engine = self._engine
        with self._network.lock:
            if self in engine.connections:
                engine.connections.remove(self)
            if self.inbox and is_heard and engine.state != "dead":
                engine.late.append(self.inbox)
        self.inbox = deque()


def _cost(value: bytes | Hash) -> int:
    return OVERHEAD_BYTES + (len(value) if isinstance(value, bytes) else 0)


def _slot_of(key: bytes) -> int:
    _, brace, rest = key.partition(b"{")
    tag, end, _ = rest.partition(b"}")
    return slot_of_tag(tag if brace and end and tag else key)


def _part(start: int, lengths: Sequence[int]) -> int:
    """As much as may be in flight at once."""
    stop, total_bytes = start, 0
    while stop < min(len(lengths), start + MAX_IN_FLIGHT):
        total_bytes += lengths[stop]
        if total_bytes > MAX_IN_FLIGHT_BYTES and stop > start:
            break
        stop += 1
    return stop


def _too_late() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "no answer in time")
