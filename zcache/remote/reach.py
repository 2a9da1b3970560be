"""Reach: what it takes to connect to the engine that one URL names, beside the URL: its addresses,
and what its files hold (a password, certificates).

A swap's first start finds all of it, or is refused. A successor goes on without what it cannot have
now, and connects to nobody there: a file that is gone leaves it without TLS or without a password,
and neither is for this machine to do without. That is tried again when it takes over, and by the
mender (a server that has given up its right to open files finds none any more; the next one does).

Names are looked up at the start of a process, and by the mender: the name service may itself wait
for a page of this swap, so nobody waits for it on the path of a page, or while there is no server.
The first server notes the addresses that it has found in its tables, which hold them for those
after it.

Locking: none; the thread that starts the server, then the mender's.
"""

import contextlib
import errno
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from zcache.clock import Clock
from zcache.errors import BadInput
from zcache.remote.readers import Connected
from zcache.remote.resp import Connection
from zcache.remote.tables import INCARNATIONS, Tables
from zcache.remote.url import Address, Url, resolve, tls_context, with_password

if TYPE_CHECKING:
    import ssl

#: Between two tries to find what is missing. More than `mender.START_SECONDS`: a server that takes
#: over looks at all peers for so long before it serves, and is not to look up names then.
AGAIN_SECONDS: Final = 5.0
#: Words of the tables, of 8 bytes, that are for lanes' tags, and that no lane has.
WORDS: Final = range(64, INCARNATIONS)

#: Connects to an engine, as `Connection` does.
Connect = Callable[..., Connected]


class Reach:
    """Of one URL; nothing is known at first."""

    def __init__(self, url: Url, clock: Clock, connect_to: Connect = Connection) -> None:
        self.url = url  # with its password, once that was read
        self.addresses: list[Address] = []
        self._connect_to = connect_to
        self._clock = clock
        self._tls: ssl.SSLContext | None = None
        self._has_login = False
        self._why_no_login = f"remote={url.name}: its files were not read"
        self._why_nowhere = ""
        self._again_at = 0.0

    def find(self, may_ask: bool) -> list[str]:
        """Look for what is missing; `may_ask` the name service, for as long as that takes. Returns
        a line for each thing that was looked for in vain."""
        missing = []
        if not self._has_login:
            try:
                url, tls = with_password(self.url), tls_context(self.url)
            except BadInput as error:
                self._why_no_login = str(error)
                missing.append(self._why_no_login)
            else:  # both of them, or neither
                self.url, self._tls, self._has_login = url, tls, True
        if not self.addresses:
            try:
                self.addresses = resolve(self.url, may_ask)
            except BadInput as error:
                if may_ask:
                    missing.append(str(error))
                if may_ask or not self._why_nowhere:
                    self._why_nowhere = str(error)
        self._again_at = self._clock.now() + AGAIN_SECONDS
        return missing

    def find_again(self) -> None:
        """By the mender: the same, if something is missing, and if it is time."""
        if (self._has_login and self.addresses) or self._clock.now() < self._again_at:
            return
        why = self._why_no_login
        self.find(may_ask=True)
        self._why_no_login = why  # the first answer: now, no file at all may be opened

    def check_login(self) -> None:
        """Raises `OSError`: it must not be connected to as long as its files were not read."""
        if not self._has_login:
            raise OSError(errno.EACCES, self._why_no_login)

    def connect(self, address: Address, seconds: float) -> Connected:
        """To an engine there, by this URL's user. Raises `OSError`, after so many seconds at the
        latest."""
        self.check_login()
        return self._connect_to(
            address,
            user=self.url.user,
            password=self.url.password,
            tls=self._tls,
            server_name=self.url.server_name or self.url.host,
            seconds=seconds,
        )

    def known_addresses(self) -> Sequence[Address]:
        """At least one. Raises `OSError`: none is known, and why."""
        self.check_login()
        if not self.addresses:
            raise OSError(errno.EHOSTUNREACH, self._why_nowhere)
        return self.addresses


def note(tables: Tables, found: Mapping[str, Sequence[Address]]) -> None:
    """Addresses, by the name of a URL: as many as there is room for (some 30 URLs, or nodes)."""
    rows: dict[str, list[object]] = {}
    text = b""
    for name, addresses in found.items():
        rows[name] = [sockaddr for _, sockaddr in addresses]
        longer = json.dumps(rows, separators=(",", ":")).encode()
        text = longer if len(longer) <= 8 * len(WORDS) else text
    for index, word in enumerate(WORDS):
        tables.note_tag(word, text[8 * index : 8 * index + 8])


def noted(tables: Tables) -> dict[str, list[Address]]:
    """What a predecessor has noted; an older one nothing."""
    rows = {}
    with contextlib.suppress(ValueError):
        rows = json.loads(b"".join(map(tables.tag, WORDS)))
    six, four = socket.AF_INET6, socket.AF_INET
    return {name: [Address(six if ":" in w[0] else four, tuple(w)) for w in found] for name, found in rows.items()}
