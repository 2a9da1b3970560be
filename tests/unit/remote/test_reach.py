"""How engines are found: by the first server, by those after it while files are gone and the name
service is silent, and again later; among engines that are dicts, and a name service that is one."""

import errno
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.clock import FakeClock
from tests.support.engines import Engine
from tests.support.fake_engine import FakeNetwork
from tests.support.remote import FRAME_BYTES, EverySlot, sections
from zcache.errors import BadInput
from zcache.image.image import Section
from zcache.remote import reach
from zcache.remote.copies import Copies
from zcache.remote.engines import LOOK_SECONDS, MAP_SECONDS, MAX_LANES, NODE_SECONDS, Engines
from zcache.remote.mender import START_SECONDS, Mender
from zcache.remote.peer import Peer
from zcache.remote.reach import AGAIN_SECONDS, note, noted
from zcache.remote.reading import Reading
from zcache.remote.tables import Tables
from zcache.remote.url import Address, Url, parse_url

SLOTS: Final = 8
HOSTS: Final = {"engine-a": "10.0.0.1", "engine-b": "10.0.0.2"}
WORD: Final = "open-sesame"


class NameService:
    """Knows some hosts; `asked` is for which, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts = dict(HOSTS)
        self.asked: list[str] = []
        self._ask_system = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._ask)

    def _ask(self, host: str, port: int, *, type: int, flags: int = 0) -> list[Any]:
        try:
            return self._ask_system(host, port, type=type, flags=flags | socket.AI_NUMERICHOST)
        except socket.gaierror:
            if flags & socket.AI_NUMERICHOST:
                raise
        self.asked.append(host)
        if host not in self.hosts:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, type, 0, "", (self.hosts[host], port))]


class Server:
    """One that serves what is in `image`, or will; the network stays."""

    def __init__(
        self,
        network: FakeNetwork,
        urls: list[str],
        image: Callable[[str], Section],
        *,
        is_successor: bool = False,
        may_ask: bool = True,
    ) -> None:
        self.network, self.clock = network, network.clock
        self.said: list[str] = []
        self.logins: list[tuple[str, object]] = []
        self.engines = Engines([parse_url(url, is_successor) for url in urls], 2, False, self.clock, self._connect)
        self.engines.resolve(is_successor, self.said.append, may_ask)
        if not is_successor:
            self.engines.check(self.said.append)
        self.image = image

    def begin(self) -> None:
        """To serve: it was waiting until now, perhaps."""
        tables = Tables(SLOTS, self.image)
        is_new = not any(tables.words)
        self.peers = self.engines.make_peers("name", tables, is_new)
        self.copies = Copies(tables, self.peers, FRAME_BYTES, self.clock)
        self.mender = Mender(EverySlot(SLOTS, self.copies), self.engines, self.clock, self.said.append)
        self.mender.connect_all()

    def work(self, seconds: float) -> None:
        ends = self.clock.now() + seconds
        while self.clock.now() < ends:
            self.clock.seconds += 0.25
            self.mender.work()

    def are_up(self) -> bool:
        return all(peer.is_up and peer.is_connected() for peer in self.peers)

    def _connect(self, address: Address, **how: Any) -> Any:
        self.logins.append((how["password"], how["tls"]))
        return self.network.connect(address, **how)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> NameService:
    return NameService(monkeypatch)


@pytest.fixture
def network(rng: random.Random) -> FakeNetwork:
    """Two engines."""
    made = FakeNetwork(FakeClock(), rng)
    for host in HOSTS.values():
        made.add(f"{host}:6379")
    return made


URLS: Final = [f"redis://{host}" for host in HOSTS]


# -- names
# -------------------------------------------------------------------------------------------------


def test_a_name_that_was_looked_up_in_vain_is_looked_up_again_by_the_mender(
    names: NameService, network: FakeNetwork
) -> None:
    names.hosts.clear()
    server = Server(network, URLS, sections(SLOTS), is_successor=True)
    assert names.asked == [*HOSTS] and len(server.said) == 2
    network.clock.seconds += 86400  # as a standby
    server.engines.take_over()
    server.engines.refresh()
    server.begin()
    assert names.asked == [*HOSTS], "nobody is served yet, and the name service may be who waits"
    assert "Temporary failure in name resolution" in server.mender.troubles()[0]
    server.work(4 * AGAIN_SECONDS)
    assert 2 <= names.asked.count("engine-a") - 1 <= 4, "now and then"
    frame = memoryview(bytearray(FRAME_BYTES))
    asked = len(names.asked)
    network.clock.seconds += AGAIN_SECONDS
    server.copies.send(1, [frame], server.peers, least=0)
    Reading(server.copies).fetch([1], [frame])
    assert len(names.asked) == asked, "not on the path of a page"
    names.hosts.update(HOSTS)
    server.work(2 * AGAIN_SECONDS)
    assert server.are_up()
    asked = len(names.asked)
    server.work(2 * AGAIN_SECONDS)
    assert len(names.asked) == asked, "what is known is not asked for"


def test_a_start_is_over_before_names_are_looked_up_again() -> None:
    assert AGAIN_SECONDS > START_SECONDS


def test_a_first_start_is_refused_for_a_name_that_nobody_knows(names: NameService, network: FakeNetwork) -> None:
    names.hosts.pop("engine-b")
    with pytest.raises(BadInput, match="engine-b:6379: unknown host"):
        Server(network, URLS, sections(SLOTS))


def test_a_successor_is_told_by_the_first_server_where_they_are(names: NameService, network: FakeNetwork) -> None:
    image = sections(SLOTS)
    Server(network, URLS, image).begin()
    names.hosts = {"engine-a": "10.0.0.3"}  # what is looked up now is newer
    network.add("10.0.0.3:6379")
    for may_ask in (True, False):
        server = Server(network, URLS, image, is_successor=True, may_ask=may_ask)
        assert bool(server.said) is may_ask
        server.begin()
        (where,) = server.peers[0].where()
        assert server.are_up() and where.sockaddr == ("10.0.0.3" if may_ask else "10.0.0.1", 6379), "at once"


def test_addresses_are_noted_where_there_is_room_and_tags_stay() -> None:
    tables = Tables(SLOTS)
    assert noted(tables) == {}
    tables.note_tag(MAX_LANES - 1, b"tag")
    six, four = Address(socket.AF_INET6, ("fe80::1", 7000, 0, 2)), Address(socket.AF_INET, ("10.0.0.1", 1))
    note(tables, {"a:7000": [six, four], "b:1": [four], **{f"{n}": [four] * 9 for n in range(19)}})
    found = noted(tables)
    assert found["a:7000"] == [six, four] and found["b:1"] == [four] and 4 < len(found) < 21
    assert tables.tag(MAX_LANES - 1) == b"tag"


# -- files
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["ca", "cert", "password_file"])
@pytest.mark.parametrize("cluster", ["no", "yes"])
def test_who_cannot_read_what_it_takes_to_log_in_connects_to_nobody(
    tmp_path: Path, rng: random.Random, option: str, cluster: str
) -> None:
    """Without TLS it would send its password in clear, and without a password its commands."""
    network = FakeNetwork(FakeClock(), rng, is_cluster=cluster == "yes")
    network.add("127.0.0.1:6379")
    network.add("127.0.0.2:6379")
    scheme = "redis" if option == "password_file" else "rediss"
    who = "alice" if option == "password_file" else f"alice:{WORD}"
    urls = [f"{scheme}://{who}@127.0.0.{n}?cluster={cluster}&{option}={tmp_path}/none" for n in (1, 2)]
    server = Server(network, urls, sections(SLOTS), is_successor=True)
    server.begin()
    server.work(10)
    assert server.logins == []
    assert len(server.said) == 2 and all(f"{option}={tmp_path}/none" in line for line in server.said)
    if cluster == "no":
        assert f"EACCES: remote=alice@127.0.0.1:6379: {option}={tmp_path}/none" in server.mender.troubles()[0]


def test_an_engine_that_is_found_before_its_certificates_are_read_is_not_used(
    names: NameService, network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, or nothing: no address is left behind by a context that cannot be had."""

    def fail(url: Url) -> None:
        raise BadInput(f"remote={url.name}: ca=: No such file; give another")

    monkeypatch.setattr(reach, "tls_context", fail)
    server = Server(network, [f"rediss://:{WORD}@{host}" for host in HOSTS], sections(SLOTS), is_successor=True)
    server.begin()
    for peer in server.peers:
        with pytest.raises(OSError, match="ca=: No such file"):
            peer.greet()
    assert server.logins == [] and names.asked == [*HOSTS]


def test_nobody_is_connected_to_before_the_files_were_read() -> None:
    """Whoever asks: it would be without TLS, where that was asked for."""

    def connect(*_: object, **__: object) -> Any:
        raise AssertionError("it connects")

    url = Url("alpha", 1, password=WORD, is_tls=True)
    unread = reach.Reach(url, FakeClock(), connect)
    peer = Peer(0, unread, lambda: [Address(socket.AF_INET, ("127.0.0.1", 1))], b"p:", FakeClock())
    with pytest.raises(OSError, match="its files were not read") as raised:
        peer.greet()
    assert raised.value.errno == errno.EACCES


@pytest.mark.parametrize("by_mender", [True, False])
def test_a_password_that_is_back_is_read(tmp_path: Path, network: FakeNetwork, by_mender: bool) -> None:
    """By the mender; or by a standby whose turn it is, which has all its rights still."""
    path = tmp_path / "password"
    urls = [f"redis://alice@{host}?password_file={path}" for host in HOSTS.values()]
    server = Server(network, urls, sections(SLOTS), is_successor=True)
    if by_mender:
        server.begin()
    path.write_text(WORD)
    path.chmod(0o600)
    if by_mender:
        assert not any(peer.is_up for peer in server.peers)
        server.work(2 * AGAIN_SECONDS)
    else:
        server.engines.take_over()
        server.begin()
    assert server.are_up() and set(server.logins) == {(WORD, None)}
    assert server.engines.lanes_of(server.peers[0]) == 1


def test_the_first_reason_is_kept_when_files_may_not_be_opened_any_more(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(network, ["rediss://10.0.0.1?ca=/none", "redis://10.0.0.2"], sections(SLOTS), is_successor=True)
    server.begin()

    def forbid(url: Url) -> None:
        raise BadInput(f"remote={url.name}: ca=/none: Permission denied; give another")

    monkeypatch.setattr(reach, "tls_context", forbid)
    server.work(2 * AGAIN_SECONDS)
    assert "ca=/none: No such file" in server.mender.troubles()[0]


def test_certificates_that_are_back_are_trusted_and_an_engine_has_seen_nothing_before(tmp_path: Path) -> None:
    """A real one."""
    rules = [f"alice on >{WORD} ~zcache:alice:* +@all", "default off"]
    with Engine(tmp_path / "engine", tls_port=0, users=rules) as engine:
        clock, path = FakeClock(), tmp_path / "ca.pem"
        engines = Engines([parse_url(engine.url("alice", WORD, ca=path))], 1, True, clock)
        engines.resolve(True, lambda _: None)
        (peer,) = engines.make_peers("name", Tables(SLOTS), False)
        before = engine.info()["total_connections_received"]
        with pytest.raises(OSError, match="ca="):
            peer.greet()
        assert int(engine.info()["total_connections_received"]) == int(before) + 1, "this test's own"
        path.write_bytes(engine.certificate.read_bytes())
        clock.seconds += AGAIN_SECONDS
        identity = peer.greet()
        peer.connect(identity)
        assert peer.is_connected() and peer.url.is_tls
        peer.disconnect()


# -- a Cluster
# -------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes(rng: random.Random) -> FakeNetwork:
    """Three, and more without slots may come."""
    made = FakeNetwork(FakeClock(), rng, is_cluster=True)
    for n in range(1, 4):
        made.add(f"127.0.0.{n}:7000")
    return made


def test_a_successor_asks_other_nodes_than_that_of_the_url(nodes: FakeNetwork) -> None:
    """Which is down, and a fresh process has no map yet."""
    image, urls = sections(SLOTS), ["redis://127.0.0.1:7000?cluster=yes"]
    Server(nodes, urls, image).begin()
    nodes.at["127.0.0.1:7000"].end()
    server = Server(nodes, urls, image, is_successor=True, may_ask=False)
    server.engines.refresh()  # in vain
    server.begin()
    up = [peer for peer in server.peers if peer.is_up]
    assert len(server.peers) == 3 and len(up) == 2


def test_lanes_wait_for_their_password_though_the_map_is_known(tmp_path: Path, nodes: FakeNetwork) -> None:
    """By another URL of the same Cluster."""
    path, image = tmp_path / "password", sections(SLOTS)
    urls = [f"redis://alice@127.0.0.1:7000?cluster=yes&password_file={path}"]
    urls.append("redis://bob:b@127.0.0.2:7000?cluster=yes")
    path.write_text(WORD)
    Server(nodes, urls, image).begin()
    path.unlink()
    server = Server(nodes, urls, image, is_successor=True)
    server.begin()
    server.work(1)
    assert len(server.peers) == 3 and all(map(server.engines.node_of, server.peers))
    assert {password for password, _ in server.logins} == {"b"} and not any(peer.is_up for peer in server.peers)
    path.write_text(WORD)
    server.work(2 * AGAIN_SECONDS)
    assert server.are_up() and {password for password, _ in server.logins} == {"b", WORD}


def test_nodes_that_do_not_answer_hold_up_a_look_at_the_map_for_so_long_only(nodes: FakeNetwork) -> None:
    for n in range(1, 13):
        nodes.add(f"127.0.0.{n}:7000")
    server = Server(nodes, ["redis://127.0.0.1:7000?cluster=yes"], sections(SLOTS))
    server.begin()
    for n in range(1, 12):
        nodes.at[f"127.0.0.{n}:7000"].state = "cut"
    nodes.owners.remove("127.0.0.1:7000")
    before = server.engines.node_of(server.peers[0])
    for look in range(1, 5):
        assert server.engines.node_of(server.peers[0]) == before
        nodes.clock.seconds += MAP_SECONDS
        begin = nodes.clock.now()
        server.engines.refresh()
        assert nodes.clock.now() - begin <= LOOK_SECONDS + NODE_SECONDS, look
    assert server.engines.node_of(server.peers[0]) != before, "the one that answers is asked in the fourth"


def test_a_cluster_whose_nodes_have_names_only_is_refused_in_one_line(
    nodes: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = [0, 16383, [b"node-1.example", 7000, b"id", [b"hostname", b"node-1.example"]]]
    monkeypatch.setattr(nodes, "cluster_slots", lambda: [row])
    with pytest.raises(BadInput, match=r"^remote=[^\n]*has no address of any node[^\n]*; set cluster-announce-ip"):
        Server(nodes, ["redis://127.0.0.1:7000?cluster=yes"], sections(SLOTS))
