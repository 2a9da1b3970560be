"""What `remote=` gives: where an engine is, who logs in there, and how.

    redis://[USER[:PASSWORD]@]HOST[:PORT][?OPTIONS]      (`rediss://`: the same over TLS)
    unix://[USER[:PASSWORD]@]/PATH[?OPTIONS]

OPTIONS are `cluster=yes|no`, `password_file=PATH`, and over TLS `ca=PATH`, `cert=PATH`, `key=PATH`
and `server_name=NAME`. User, password and the options' values are percent-decoded; `+` is itself.
A value that is not understood is refused with one line, and none ever shows a password: of a text
that cannot be told apart, only scheme and host are repeated.

Only database 0 is used: a Cluster has no other. Whoever stands in the URL owns the keys, which have
the user's name in them; so that may hold few characters beside letters and digits.
"""

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from zcache.errors import BadInput
from zcache.remote.accounts import OWNER

if TYPE_CHECKING:
    import ssl

DEFAULT_PORT: Final = 6379
DEFAULT_USER: Final = "default"
FORMS: Final = "redis://HOST, rediss://HOST or unix:///PATH, with USER:PASSWORD@ before HOST if need be"

_FORM: Final = re.compile(r"(rediss?|unix)://(?:([^/?#]*)@)?([^/?#@]*)(/[^?#]*)?(?:\?([^#]*))?")
_HOST: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+(?:%[\w.-]+)?)\]|([\w.-]+))(?::([0-9]{1,5}))?", re.ASCII)
_TLS_OPTIONS: Final = ("ca", "cert", "key", "server_name")
_OPTIONS: Final = ("cluster", "password_file", *_TLS_OPTIONS)
#: The longest that `sockaddr_un` holds.
_MAX_PATH_BYTES: Final = 107
#: No password is longer; what is, is the wrong file.
_MAX_PASSWORD_BYTES: Final = 1024


class Url(NamedTuple):
    """One engine, or a Cluster's node to ask first. Its text and `repr` have no password."""

    host: str = ""
    port: int = 0
    path: str = ""  # of a Unix socket; "": by TCP
    user: str = DEFAULT_USER
    password: str = ""
    is_cluster: bool = False
    is_tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""  # what the certificate must name
    password_file: str = ""
    warnings: tuple[str, ...] = ()  # a line each

    @property
    def name(self) -> str:
        """As shown to people: `host:port` or a path, with `user@` before it if there is one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user != DEFAULT_USER else ""
        return user + (self.path or f"{host}:{self.port}")

    def __repr__(self) -> str:
        return f"Url({self.name})"


class Address(NamedTuple):
    """What a socket connects to."""

    family: int
    sockaddr: str | tuple[str | int, ...] | tuple[int, bytes]


def parse_url(text: str, is_successor: bool = False) -> Url:
    """Reads `password_file=`, too; a successor goes on without it, and may read it later
    (`with_password`). Raises `BadInput`."""
    shown = _shown(text)
    if not text.isprintable():
        raise _bad(shown, "holds a character that cannot be printed", "it percent-encoded")
    match = _FORM.fullmatch(text)
    if not match:
        what = "not the URL of an engine; / ? # in a password are written %2F %3F %23"
        raise _bad(shown, what, FORMS)
    scheme, who, where, path, query = match.groups(default="")
    user, _, password = who.partition(":")
    options = _options(shown, query, scheme == "rediss")
    url = Url(
        user=_decoded(shown, "user", user) or DEFAULT_USER,
        password=_decoded(shown, "password", password),
        is_cluster=options.get("cluster") == "yes",
        is_tls=scheme == "rediss",
        ca=options.get("ca", ""),
        cert=options.get("cert", ""),
        key=options.get("key", ""),
        password_file=options.get("password_file", ""),
    )
    if url.user == "quota":
        raise _bad(shown, "keys of that name are everybody's quotas", "another user")
    if not OWNER.fullmatch(url.user):
        raise _bad(shown, "keys are named for the user", "one of letters, digits and . _ @ + -")
    if password:
        url = url._replace(warnings=("a password in a URL is seen in lists of processes; give password_file=PATH",))
    url = _at_path(shown, url, where, path) if scheme == "unix" else _at_host(shown, url, where, path)
    url = url._replace(server_name=options.get("server_name") or url.host)
    if url.password and url.password_file:
        raise _bad(url.name, "has a password, and password_file=", "one of them")
    try:
        return with_password(url)
    except BadInput:
        if not is_successor:
            raise
        return url


def with_password(url: Url) -> Url:
    """The same, with what is in its `password_file`, if it has one that was not read yet. Raises
    `BadInput`."""
    path = url.password_file
    if not path or url.password:
        return url
    try:
        password = read_password(path)
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise _bad(url.name, f"password_file={path}: {_why(error)}", "a file that can be read") from None
    except BadInput as error:
        raise BadInput(f"remote={url.name}: {error}") from None
    warnings = (f"password_file={path} can be read by others; chmod 600 {path}",) if mode & 0o077 else ()
    return url._replace(password=password, warnings=warnings)


def read_password(path: str) -> str:
    """What is in a file, as text that `surrogateescape` makes bytes again. Raises `BadInput`."""
    try:
        with Path(path).open("rb") as file:
            found = file.read(_MAX_PASSWORD_BYTES + 1).rstrip(b"\r\n")
    except (OSError, ValueError) as error:
        raise BadInput(f"password_file={path}: {_why(error)}; give a file that can be read") from None
    if not found or len(found) > _MAX_PASSWORD_BYTES or b"\n" in found:
        raise BadInput(f"password_file={path}: is not one line; give a file with the password in it, and no more")
    return found.decode(errors="surrogateescape")


def resolve(url: Url, may_ask: bool = True) -> list[Address]:
    """Where to connect to: all that may be tried, best first. Asks the name service, which may take
    as long as that does, unless it may not: a host is known then if it is an address. Raises
    `BadInput`."""
    if url.path:
        return [Address(socket.AF_UNIX, url.path)]
    flags = 0 if may_ask else socket.AI_NUMERICHOST
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a name"
        why = why if may_ask else "not looked up yet"
        raise _bad(url.name, f"unknown host ({why})", "one that this machine can look up, or an address") from None
    return [Address(family, sockaddr) for family, _, _, _, sockaddr in found]


def tls_context(url: Url) -> "ssl.SSLContext | None":
    """How to trust it, and who we are; None: no TLS. Reads the files that the URL names. Raises
    `BadInput`."""
    if not url.is_tls:
        return None
    import ssl  # 3 MB, and only where it is used

    try:
        context = ssl.create_default_context(cafile=url.ca or None)
    except OSError as error:
        raise _bad(url.name, f"ca={url.ca}: {_why(error)}", "a file of certificates (PEM)") from None
    if url.cert:
        try:
            # Our own answer to a key that has a password: nobody is there to be asked for it.
            context.load_cert_chain(url.cert, url.key or None, password=lambda: "")
        except OSError as error:
            files = f"cert={url.cert} key={url.key or url.cert}: {_why(error)}"
            raise _bad(url.name, files, "a certificate and its key (PEM, without a password)") from None
    return context


def _at_host(shown: str, url: Url, where: str, path: str) -> Url:
    match = _HOST.fullmatch(where)
    if not match or not 0 < int(match[3] or DEFAULT_PORT) < 65536:
        raise _bad(shown, "no host, or no such port", "HOST or HOST:PORT, an IPv6 address in brackets")
    if path not in ("", "/", "/0"):
        raise _bad(shown, "only database 0 is used, as a Cluster has no other", "no path after the host")
    return url._replace(host=match[1] or match[2], port=int(match[3] or DEFAULT_PORT))


def _at_path(shown: str, url: Url, where: str, path: str) -> Url:
    path = _decoded(shown, "path", path)
    if where or len(path) < 2:
        raise _bad(shown, "no absolute path", "unix:///PATH or unix://USER:PASSWORD@/PATH")
    if len(path.encode(errors="surrogateescape")) > _MAX_PATH_BYTES:
        raise _bad(shown, "too long for a Unix socket", f"a path of at most {_MAX_PATH_BYTES} bytes")
    if url.is_cluster:
        raise _bad(shown, "a Cluster's nodes are reached by TCP", "redis://HOST or rediss://HOST with cluster=yes")
    return url._replace(path=path)


def _options(shown: str, query: str, is_tls: bool) -> dict[str, str]:
    options: dict[str, str] = {}
    for word in query.split("&") if query else ():
        key, _, value = word.partition("=")
        if key not in _OPTIONS:  # it is not repeated: it may be what was meant as a password
            raise _bad(shown, "holds an unknown option", f"{', '.join(_OPTIONS)} after ?, with & between them")
        if key in options:
            raise _bad(shown, f"{key}= is given twice", "it once")
        if key in _TLS_OPTIONS and not is_tls:
            raise _bad(shown, f"{key}= is for TLS", "rediss://, or leave it away")
        options[key] = _decoded(shown, key, value)
        if not options[key]:
            raise _bad(shown, f"{key}= is empty", "it a value, or leave it away")
    if options.get("cluster", "no") not in ("yes", "no"):
        raise _bad(shown, "cluster=: no such choice", "cluster=yes or cluster=no")
    try:
        options.get("server_name", "").encode("idna")  # as TLS takes it
    except UnicodeError:
        raise _bad(shown, "server_name=: not a name", "a name that a certificate may have") from None
    if "key" in options and "cert" not in options:
        raise _bad(shown, "key= without cert=", "the certificate that the key is for")
    return options


def _decoded(shown: str, what: str, text: str) -> str:
    if re.search(r"%(?![0-9a-fA-F]{2})", text):
        raise _bad(shown, f"a % in its {what} has no two hex digits after it", "%25 for the sign itself")
    decoded = unquote_to_bytes(text).decode(errors="surrogateescape")
    if what != "password" and not decoded.isprintable():
        raise _bad(shown, f"its {what} holds a character that cannot be printed", "one without")
    return decoded


def _shown(text: str) -> str:
    """Scheme and host, before anything is known of the text: whatever else there is may be a
    password, or a part of one."""
    scheme, _, rest = text.partition("://")
    _, at, where = rest.rpartition("@")
    match = re.match(r"\[[0-9a-fA-F:.]*\]|[\w.-]+|/[^?#]*", where)
    host = match[0] if match and match[0].isprintable() else ""
    return f"{scheme}://{'…@' if at else ''}{host}" if scheme in ("redis", "rediss", "unix") else "…"


def _bad(shown: str, what: str, give: str) -> BadInput:
    return BadInput(f"remote={shown}: {what}; give {give}")


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
