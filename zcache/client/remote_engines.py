"""Engines as `zcache remote` asks them, by redis-py: for people, and off the path of any page.

In a Cluster each primary is asked for itself, by the Cluster's own map (`zcache.remote.cluster`).
redis-py's client of a Cluster would ask for COMMAND first, which a machine's account may not; and
what is wanted here is what each node holds. `protocol=2`, and nothing is said of the client's own
name, for the same reason.

redis-py is imported late: `zcache remote --help` and `acl` do without, and so does whoever has not
installed it.

Whom to trust over TLS is `zcache.remote.url.tls_context`'s to say, as for a server.
"""

import contextlib
import importlib.util
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from zcache.errors import BadInput, EnvironmentProblem
from zcache.remote import checks, cluster
from zcache.remote.cluster import Shard
from zcache.remote.peer import shown
from zcache.remote.url import DEFAULT_USER, Url, tls_context

if TYPE_CHECKING:
    from redis import ConnectionPool

#: For each answer.
ANSWER_SECONDS: Final = 5.0
#: Keys listed in one go, which takes an engine well below a millisecond, and removed.
BATCH_KEYS: Final = 1000


class Engine:
    """One that answers: it stands alone, or is a primary of a Cluster. `place` is what has one
    quota for each owner: itself, or the Cluster. Raises `EnvironmentProblem`, as all that it
    does."""

    def __init__(self, url: Url, place: str) -> None:
        self.url = url
        self.name = url.name
        self.place = place
        from redis import Redis

        self._client: Any = Redis.from_pool(_pool(url))
        self.info = {name: shown(str(value)) for name, value in self.ask("INFO").items()}

    def ask(self, *words: bytes | str | int) -> Any:
        """One command. Raises `NotAllowed` if the account may not, and `OtherKind`."""
        with self._told():
            return self._client.execute_command(*words)

    def keys(self, pattern: bytes) -> Iterator[list[bytes]]:
        """All that fit, in batches; one that comes or goes meanwhile may be missing or be there
        twice."""
        cursor = -1
        while cursor:
            cursor, found = self.ask("SCAN", max(cursor, 0), "MATCH", pattern, "COUNT", BATCH_KEYS)
            yield found

    def close(self) -> None:
        self._client.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors, as one line."""
        from redis.exceptions import NoPermissionError, RedisError

        try:
            yield
        except NoPermissionError as error:
            raise NotAllowed(f"remote={self.name}: {_line(error, self.url)}") from None
        except (RedisError, OSError, ValueError) as error:  # ValueError: what redis-py makes nothing of
            kind = OtherKind if str(error).startswith("WRONGTYPE") else EnvironmentProblem
            raise kind(f"remote={self.name}: {_line(error, self.url)}") from None


class NotAllowed(EnvironmentProblem):
    """The account that the URL names may not do this, or not with this key."""


class OtherKind(EnvironmentProblem):
    """What somebody has put under this key is not what it is for."""


class Engines:
    """All that the URLs name, each once; `silent` has a line for each that does not answer."""

    def __init__(self, urls: Sequence[Url]) -> None:
        if not importlib.util.find_spec("redis"):
            raise EnvironmentProblem(f"redis-py is missing: {sys.executable} -m pip install redis")
        self._opened = contextlib.ExitStack()
        self._maps: dict[str, list[Shard]] = {}
        self._runs: set[str] = set()
        self.all: list[Engine] = []
        self.silent: list[str] = []
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._opened)
            for url in urls:
                self._add(url)
            undo.pop_all()

    def close(self) -> None:
        """Let go of all connections."""
        self._opened.close()

    def with_key(self, key: bytes) -> list[Engine]:
        """At each place, who has a key without a tag."""
        found = [engine for engine in self.all if not engine.url.is_cluster]
        for place, shards in self._maps.items():
            node = cluster.primary_of(shards, key)
            mine = [e for e in self.all if e.place == place and node and (e.url.host, e.url.port) == node[:2]]
            if not mine:
                raise EnvironmentProblem(f"remote={place}: nobody there has the slot of {key.decode()}")
            found += mine
        return found

    def _add(self, url: Url) -> None:
        try:
            engine = self._open(url, url.name)
        except EnvironmentProblem as error:
            self.silent.append(str(error))
            return
        if why := checks.why_not(engine.info, url.is_cluster, True):
            raise BadInput(f"remote={url.name}: {why}")
        if not url.is_cluster:
            self._keep(engine)
            return
        shards = cluster.parse_shards(engine.ask("CLUSTER", "SLOTS"))
        is_known = False
        for node in cluster.primaries(shards):
            try:
                is_known |= not self._keep(self._open(url._replace(host=node.host, port=node.port), url.name))
            except EnvironmentProblem as error:
                if str(error) not in self.silent:
                    self.silent.append(str(error))
        if not is_known:  # by another of its nodes, that is
            self._maps[url.name] = shards

    def _open(self, url: Url, place: str) -> Engine:
        engine = Engine(url, place)
        self._opened.callback(engine.close)
        return engine

    def _keep(self, engine: Engine) -> bool:
        """False: it was there already, under another URL."""
        run_id = engine.info.get("run_id", engine.name)
        if run_id in self._runs:
            return False
        self._runs.add(run_id)
        self.all.append(engine)
        return True


def _pool(url: Url) -> "ConnectionPool":
    from redis import ConnectionPool
    from redis.backoff import NoBackoff
    from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
    from redis.retry import Retry

    how: dict[str, Any] = {
        "protocol": 2,
        "driver_info": None,
        "socket_timeout": ANSWER_SECONDS,
        "socket_connect_timeout": ANSWER_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    if url.password or url.user != DEFAULT_USER:
        password = url.password.encode(errors="surrogateescape")
        how |= {"username": url.user, "password": password}
    if url.path:
        return ConnectionPool(connection_class=UnixDomainSocketConnection, path=url.path, **how)
    found = tls_context(url)
    if not found:
        return ConnectionPool(connection_class=Connection, host=url.host, port=url.port, **how)
    context = found

    class TrustedConnection(SSLConnection):
        def _wrap_socket_with_ssl(self, sock: socket.socket) -> socket.socket:
            return context.wrap_socket(sock, server_hostname=url.server_name)

    return ConnectionPool(connection_class=TrustedConnection, host=url.host, port=url.port, **how)


def _line(error: Exception, url: Url) -> str:
    """What the system says of it, rather than how redis-py puts it; without the password."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    if isinstance(cause, TimeoutError) or "Timeout" in str(cause):
        return f"does not answer within {ANSWER_SECONDS:.0f} s"
    text = str(getattr(cause, "strerror", None) or cause).strip() or type(cause).__name__
    return shown(text.splitlines()[0].replace(url.password or "\0", "…"))
