"""Engines: those that `remote=` names, as they were found at the start, and the Cluster's map.

What can be refused is refused here, in one line, before anything is stored. A server that takes
over refuses nothing: its pages are there already, and an engine that is not as it was is left alone
until it is.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Final

from zcache.clock import Clock
from zcache.errors import BadInput
from zcache.remote import checks, cluster
from zcache.remote.accounts import prefix_of
from zcache.remote.cluster import Node, Shard
from zcache.remote.peer import Peer, fields_of
from zcache.remote.reach import WORDS, Connect, Reach, note, noted
from zcache.remote.readers import Connected
from zcache.remote.resp import Connection, ProtocolError, Refused
from zcache.remote.tables import Tables
from zcache.remote.url import Address, Url
from zcache.tiers.health import describe

#: For an engine to answer at the start.
START_SECONDS: Final = 5.0
#: Between two looks at a Cluster's map.
MAP_SECONDS: Final = 1.0
#: For a node to answer then; and after which no more nodes are asked: the next look begins with
#: those.
NODE_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 3.0
#: Lanes: a frame's holders name incarnations of them by one byte.
MAX_LANES: Final = 64
assert WORDS.start >= MAX_LANES


class Engines:
    """Of one server. `may_evict`: what an engine throws out is somewhere else, too."""

    def __init__(
        self, urls: Sequence[Url], copies: int, may_evict: bool, clock: Clock, connect_to: Connect = Connection
    ) -> None:
        self._reaches = [Reach(url, clock, connect_to) for url in urls]
        self._copies = copies
        self._may_evict = may_evict
        self._clock = clock
        self._shards: list[Shard] = []
        self._mapped_at = -MAP_SECONDS
        self._silent: dict[Address, float] = {}  # who did not answer then, and when that was
        self._tags: list[bytes] = []
        self._said: dict[bytes, object] = {}  # by a Cluster, of keys without a tag
        self.peers: list[Peer] = []

    @property
    def urls(self) -> list[Url]:
        """In the order in which they were given."""
        return [reach.url for reach in self._reaches]

    @property
    def is_cluster(self) -> bool:
        """Whether one of them is a Cluster's."""
        return any(url.is_cluster for url in self.urls)

    @property
    def ports(self) -> set[int]:
        """That are connected to, by TCP."""
        return {url.port for url in self.urls if not url.path}

    def resolve(self, is_successor: bool, report: Callable[[str], None], may_ask: bool = True) -> None:
        """Find where they are, and what it takes to log in; asks the name service, unless it may
        not. Raises `BadInput`, but a successor does without, and has what is missing looked for
        again (`Reach`)."""
        for reach in self._reaches:
            for why in reach.find(may_ask):
                if not is_successor:
                    raise BadInput(why)
                report(f"WARNING: {why}")

    def take_over(self) -> None:
        """A successor's turn has come: what it was missing when it was started may be there now.
        Nobody is asked."""
        for reach in self._reaches:
            reach.find(may_ask=False)

    def check(self, report: Callable[[str], None]) -> None:
        """Ask each of them whether it may hold frames. Raises `BadInput`."""
        runs: dict[str, Url] = {}
        members: set[str] = set()  # nodes of the Cluster
        for reach in self._reaches:
            url = reach.url
            for warning in url.warnings:
                report(f"WARNING: remote={url.name}: {warning}")
            said = self._ask(reach)
            if why := checks.why_not(said.info, url.is_cluster, self._may_evict):
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
                if self._copies == 2 and len(cluster.primaries(self._shards)) == 2:
                    raise BadInput(
                        f"remote={url.name}: a Cluster of two primaries stops when one is gone, for the other is no "
                        "majority; give one of three, or two engines that stand alone"
                    )
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

    def _ask(self, reach: Reach) -> checks.Said:
        """Of one URL, and if it is a Cluster's, its map."""
        url, why = reach.url, "nobody is there"
        for address in reach.addresses:
            try:
                connection = reach.connect(address, START_SECONDS)
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
                    self._read_map(url, connection)
                if not checks.why_not(said.info, url.is_cluster, self._may_evict):
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

    def _read_map(self, url: Url, connection: Connected) -> None:
        state = connection.call("CLUSTER", "INFO", seconds=START_SECONDS)
        reply = connection.call("CLUSTER", "SLOTS", seconds=START_SECONDS)
        self._shards = cluster.parse_shards(reply)
        self._mapped_at = self._clock.now()
        if reply and not self._shards:
            raise BadInput(
                f"remote={url.name}: CLUSTER SLOTS there has no address of any node, and names are not looked up "
                "later; set cluster-announce-ip at each node, or cluster-preferred-endpoint-type ip"
            )
        if not self._shards or not (isinstance(state, bytes) and b"cluster_state:ok" in state):
            raise ProtocolError("the Cluster is down; wait until `CLUSTER INFO` says cluster_state:ok")

    def is_at(self, address: object) -> bool:
        """Whether an engine is there, by what a socket says of its other end."""
        known = [found.sockaddr for reach in self._reaches for found in reach.addresses]
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
        found = noted(tables)
        if is_new or not found:  # by a predecessor that noted nothing yet
            nodes = [cluster.address_of(node) for node in cluster.primaries(self._shards)[:16]]  # enough to ask
            tcp = [reach for reach in self._reaches if not reach.url.path]
            note(tables, {each.url.name: [*each.addresses, *nodes * each.url.is_cluster] for each in tcp})
        if not is_new:
            for reach in self._reaches:
                if reach.url.is_cluster or not reach.addresses:  # which may name a node that is gone
                    reach.addresses = list(dict.fromkeys([*reach.addresses, *found.get(reach.url.name, [])]))
            self._mapped_at = -MAP_SECONDS  # there may be others to ask
            self.take_over()
        tags = [tag for tag in map(tables.tag, range(MAX_LANES)) if tag]
        self.peers = []
        for reach in self._reaches:
            if not reach.url.is_cluster:
                self._add_peer(reach, self._where_alone(reach), prefix_of(reach.url.user, name))
        seed = self._seed()
        for tag in tags if seed else ():
            assert seed
            self._add_peer(seed, self._where_in_cluster(seed, tag), prefix_of(seed.url.user, name, tag))
        return self.peers

    def _add_peer(self, reach: Reach, where: Callable[[], Sequence[Address]], prefix: bytes) -> None:
        self.peers.append(Peer(len(self.peers), reach, where, prefix, self._clock))

    def _seed(self) -> Reach | None:
        """Of the Cluster, if there is one: whom its lanes log in as."""
        return next((reach for reach in self._reaches if reach.url.is_cluster), None)

    def _where_alone(self, reach: Reach) -> Callable[[], Sequence[Address]]:
        def where() -> Sequence[Address]:
            reach.find_again()
            return reach.known_addresses()

        return where

    def _where_in_cluster(self, seed: Reach, tag: bytes) -> Callable[[], Sequence[Address]]:
        def where() -> Sequence[Address]:
            seed.find_again()
            seed.check_login()
            node = cluster.primary_of(self._shards, tag)
            return [cluster.address_of(node)] if node else []

        return where

    # -- the map, for the mender
    # ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the Cluster's map again, if it is time; asks whoever answers of the nodes that
        URLs name, those of the last map, and, of a successor, those that the first server has
        noted."""
        if not self.is_cluster or self._clock.now() - self._mapped_at < MAP_SECONDS:
            return
        self._mapped_at = self._clock.now()
        second_best: list[Shard] = []
        seeds = [reach for reach in self._reaches if reach.url.is_cluster]
        for reach in seeds:
            reach.find_again()
        known = [cluster.address_of(node) for shard in self._shards for node in shard.nodes]
        asked = [(reach, address) for reach in seeds for address in dict.fromkeys([*reach.addresses, *known])]
        ends = self._mapped_at + LOOK_SECONDS
        for reach, address in sorted(asked, key=lambda each: self._silent.get(each[1], 0.0)):
            if self._clock.now() >= ends:
                break
            try:
                with contextlib.closing(reach.connect(address, NODE_SECONDS)) as connection:
                    state = connection.call("CLUSTER", "INFO", seconds=NODE_SECONDS)
                    reply = connection.call("CLUSTER", "SLOTS", seconds=NODE_SECONDS)
            except OSError:
                self._silent[address] = self._clock.now()
                continue
            self._silent.pop(address, None)
            shards = cluster.parse_shards(reply)
            if shards and isinstance(state, bytes) and b"cluster_state:ok" in state:
                self._shards = shards
                return
            second_best = second_best or shards
        self._shards = second_best or self._shards  # of nodes that may be cut off from the others

    def why_not(self, peer: Peer) -> str:
        """Why a peer that was just greeted must not hold frames; "": it may. Raises `OSError`."""
        return checks.why_not(fields_of(peer.ask("INFO")), peer.url.is_cluster, self._may_evict)

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
