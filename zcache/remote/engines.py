"""Engines: those that `remote=` names, as they were found at the start, and the Cluster's map.

What can be refused is refused here, in one line, before anything is stored. A server that takes
over refuses nothing: its pages are there already, and an engine that is not as it was is left alone
until it is.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from zcache.clock import Clock
from zcache.errors import BadInput
from zcache.remote import checks, cluster
from zcache.remote.accounts import prefix_of
from zcache.remote.cluster import Node, Shard
from zcache.remote.peer import Connect, Peer
from zcache.remote.readers import Connected
from zcache.remote.resp import Connection, ProtocolError, Refused
from zcache.remote.tables import Tables
from zcache.remote.url import Address, Url, resolve, tls_context
from zcache.tiers.health import describe

if TYPE_CHECKING:
    import ssl

#: For an engine to answer at the start.
START_SECONDS: Final = 5.0
#: Between two looks at a Cluster's map.
MAP_SECONDS: Final = 1.0
#: Lanes: a frame's holders name incarnations of them by one byte.
MAX_LANES: Final = 64


class Engines:
    """Of one server. `may_evict`: what an engine throws out is somewhere else, too."""

    def __init__(
        self, urls: Sequence[Url], copies: int, may_evict: bool, clock: Clock, connect_to: Connect = Connection
    ) -> None:
        self._connect_to = connect_to
        self.urls = list(urls)
        self._copies = copies
        self._may_evict = may_evict
        self._clock = clock
        self._tls: dict[Url, ssl.SSLContext | None] = {}
        self._addresses: dict[Url, list[Address]] = {}
        self._shards: list[Shard] = []
        self._mapped_at = -MAP_SECONDS
        self._tags: list[bytes] = []
        self._said: dict[bytes, object] = {}  # by a Cluster, of keys without a tag
        self.peers: list[Peer] = []

    @property
    def is_cluster(self) -> bool:
        """Whether one of them is a Cluster's."""
        return any(url.is_cluster for url in self.urls)

    @property
    def ports(self) -> set[int]:
        """That are connected to, by TCP."""
        return {url.port for url in self.urls if not url.path}

    def resolve(self, is_successor: bool, report: Callable[[str], None]) -> None:
        """Find where they are, once; asks the name service. Raises `BadInput`, but a successor
        does without."""
        for url in self.urls:
            self._addresses[url], self._tls[url] = [], None
            try:
                self._addresses[url] = resolve(url)
                self._tls[url] = tls_context(url)
            except BadInput as error:
                if not is_successor:
                    raise
                report(f"WARNING: {error}")

    def check(self, report: Callable[[str], None]) -> None:
        """Ask each of them whether it may hold frames. Raises `BadInput`."""
        runs: dict[str, Url] = {}
        members: set[str] = set()  # nodes of the Cluster
        for url in self.urls:
            for warning in url.warnings:
                report(f"WARNING: remote={url.name}: {warning}")
            said = self._ask(url)
            if why := checks.why_not(said, url.is_cluster, self._may_evict):
                raise BadInput(f"remote={url.name}: {why}")
            if not url.is_cluster and said.run_id in runs:
                raise BadInput(
                    f"remote={url.name}: the same engine as remote={runs[said.run_id].name}; "
                    "two copies there are lost together; give another"
                )
            runs[said.run_id] = url
            warnings = checks.warnings(said)
            if url.is_cluster:
                found = {node.id for shard in self._shards for node in shard.nodes}
                if members and members.isdisjoint(found):
                    raise BadInput(f"remote={url.name}: is of another Cluster than those before it; give one Cluster")
                members |= found
                warnings += checks.cluster_warnings(said, cluster.has_replicas(self._shards))
            for warning in warnings:
                report(f"WARNING: remote={url.name}: {warning}")
        self._tags = cluster.choose_tags(self._shards)[:MAX_LANES]
        lanes = len(self._tags) + sum(not url.is_cluster for url in self.urls)
        if lanes < self._copies:
            raise BadInput(
                f"remote={self.urls[0].name}: two copies of each frame need two engines, and this is one; "
                "give another remote=, or remote_copies=1 and a backing"
            )

    def _ask(self, url: Url) -> checks.Said:
        """Of one URL, and if it is a Cluster's, its map."""
        why = "nobody is there"
        for address in self._addresses[url]:
            try:
                connection = self._connect(url, address, START_SECONDS)
            except Refused as error:
                if error.word in ("WRONGPASS", "NOAUTH", "ERR", "NOPERM"):
                    raise BadInput(
                        f"remote={url.name}: {error.text}; give the user and the password that the engine has"
                    ) from None
                why = error.text
                continue
            except OSError as error:
                why = str(error.strerror) if isinstance(error, ProtocolError) else describe(error)
                continue
            try:
                said = checks.ask(connection, START_SECONDS)
                if url.is_cluster and said.info.get("cluster_enabled", "0") != "0":
                    self._read_map(connection)
                if not checks.why_not(said, url.is_cluster, self._may_evict):
                    checks.try_rights(connection, url.user, START_SECONDS)
            except Refused as error:
                give = "give a user and a password" if error.word == "NOAUTH" else "see the engine's log and ACL"
                raise BadInput(f"remote={url.name}: {error.text}; {give}") from None
            except OSError as error:
                why = str(error.strerror) if isinstance(error, ProtocolError) else describe(error)
                continue
            finally:
                connection.close()
            return said
        raise BadInput(f"remote={url.name}: does not answer ({why}); give the URL of a Redis or Valkey that runs")

    def _read_map(self, connection: Connected) -> None:
        state = connection.call("CLUSTER", "INFO", seconds=START_SECONDS)
        self._shards = cluster.parse_shards(connection.call("CLUSTER", "SLOTS", seconds=START_SECONDS))
        self._mapped_at = self._clock.now()
        if not self._shards or not (isinstance(state, bytes) and b"cluster_state:ok" in state):
            raise ProtocolError("the Cluster is down; wait until `CLUSTER INFO` says cluster_state:ok")

    def _connect(self, url: Url, address: Address, seconds: float) -> Connected:
        return self._connect_to(
            address,
            user=url.user,
            password=url.password,
            tls=self._tls[url],
            server_name=url.server_name or url.host,
            seconds=seconds,
        )

    def is_at(self, address: object) -> bool:
        """Whether an engine is there, by what a socket says of its other end."""
        known = [found.sockaddr for addresses in self._addresses.values() for found in addresses]
        known += [cluster.address_of(node).sockaddr for shard in self._shards for node in shard.nodes]
        if isinstance(address, tuple):  # of IPv6, there is more behind host and port
            return address[:2] in [name[:2] for name in known if isinstance(name, tuple)]
        return address in known

    # -- lanes
    # ---------------------------------------------------------------------------------------------

    def make_peers(self, name: str, tables: Tables, is_new: bool) -> list[Peer]:
        """One for each engine that stands alone, then one for each lane of the Cluster: as they
        were chosen at the start, or as a predecessor has noted them."""
        if is_new:
            # Not chosen yet by a standby, for its trial.
            for lane, tag in enumerate(self._tags or cluster.choose_tags(self._shards)[:MAX_LANES]):
                tables.note_tag(lane, tag)
        tags = [tag for tag in map(tables.tag, range(MAX_LANES)) if tag]
        self.peers = []
        alone = [url for url in self.urls if not url.is_cluster]
        for url in alone:
            prefix = prefix_of(url.user, name)
            self._add_peer(url, self._where_alone(url), prefix)
        seed = next((url for url in self.urls if url.is_cluster), None)
        for tag in tags if seed else ():
            assert seed
            self._add_peer(seed, self._where_in_cluster(tag), prefix_of(seed.user, name, tag))
        return self.peers

    def _add_peer(self, url: Url, where: Callable[[], Sequence[Address]], prefix: bytes) -> None:
        lane = len(self.peers)
        self.peers.append(Peer(lane, url, where, prefix, self._clock, self._tls[url], self._connect_to))

    def _where_alone(self, url: Url) -> Callable[[], Sequence[Address]]:
        return lambda: self._addresses[url]

    def _where_in_cluster(self, tag: bytes) -> Callable[[], Sequence[Address]]:
        def where() -> Sequence[Address]:
            node = cluster.primary_of(self._shards, tag)
            return [cluster.address_of(node)] if node else []

        return where

    # -- the map, for the mender
    # ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the Cluster's map again, if it is time; asks whoever answers."""
        if not self.is_cluster or self._clock.now() - self._mapped_at < MAP_SECONDS:
            return
        self._mapped_at = self._clock.now()
        second_best: list[Shard] = []
        for url in self.urls:
            if not url.is_cluster:
                continue
            known = [cluster.address_of(node) for shard in self._shards for node in shard.nodes]
            for address in dict.fromkeys([*self._addresses[url], *known]):
                with contextlib.suppress(OSError):
                    connection = self._connect(url, address, 1.0)
                    with contextlib.closing(connection):
                        state = connection.call("CLUSTER", "INFO", seconds=1.0)
                        reply = connection.call("CLUSTER", "SLOTS", seconds=1.0)
                    shards = cluster.parse_shards(reply)
                    if shards and isinstance(state, bytes) and b"cluster_state:ok" in state:
                        self._shards = shards
                        return
                    second_best = second_best or shards
        self._shards = second_best or self._shards  # of nodes that may be cut off from the others

    def why_not(self, peer: Peer) -> str:
        """Why a peer that was just greeted must not hold frames; "": it may."""
        said = checks.ask_peer(peer)
        return checks.why_not(said, peer.url.is_cluster, self._may_evict)

    def why_not_any_more(self, memory: dict[str, str]) -> str:
        """Why a peer must be given no more frames, by what it says of its memory now; "": it may
        be."""
        return "" if self._may_evict else checks.why_it_may_evict(memory)

    def lanes_of(self, peer: Peer) -> int:
        """Among how many an owner's quota is divided."""
        return sum(other.url == peer.url for other in self.peers) if peer.url.is_cluster else 1

    def ask_where_it_is(self, peer: Peer, key: bytes) -> object:
        """The value of a key without a tag: at this engine, or at the lane of the Cluster that has
        it now. If that one does not answer, it is what it said last: its trouble is not this
        one's."""
        if not peer.url.is_cluster:
            return peer.ask("GET", key)
        node = cluster.primary_of(self._shards, key)
        for other in self.peers:
            if other.url == peer.url and other.is_up and self.node_of(other) == node:
                with contextlib.suppress(OSError):
                    self._said[key] = other.ask("GET", key)
                break
        return self._said.get(key)

    def node_of(self, peer: Peer) -> Node | None:
        """Who has a lane now; None for an engine that stands alone."""
        lane_tag = peer.prefix.partition(b"{")[2].partition(b"}")[0]
        return cluster.primary_of(self._shards, lane_tag) if lane_tag else None

    def troubles(self) -> list[str]:
        """What is wrong with the Cluster as a whole."""
        nodes = [node for node in map(self.node_of, self.peers) if node]
        if len(set(nodes)) < min(len(nodes), 2):
            return ["all lanes are at one node of the Cluster: when it is gone, both copies are; move slots"]
        return []
