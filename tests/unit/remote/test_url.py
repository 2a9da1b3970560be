"""`remote=`: what may be given, and refusals that never show a password."""

import random
import socket
import string
from pathlib import Path

import pytest

from zcache.errors import BadInput
from zcache.remote.url import Url, parse_url, resolve, tls_context, with_password

HIDDEN = "hunter2"


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("redis://alpha", "alpha:6379", ("alpha", 6379, "", "default", "", False, False)),
        ("redis://alpha:7000/0", "alpha:7000", ("alpha", 7000, "", "default", "", False, False)),
        ("redis://bob:a%40b%2F@alpha/", "bob@alpha:6379", ("alpha", 6379, "", "bob", "a@b/", False, False)),
        ("redis://:p@ss:word@alpha", "alpha:6379", ("alpha", 6379, "", "default", "p@ss:word", False, False)),
        ("redis://bob@alpha?cluster=yes", "bob@alpha:6379", ("alpha", 6379, "", "bob", "", True, False)),
        ("redis://[::1]:7000?cluster=no", "[::1]:7000", ("::1", 7000, "", "default", "", False, False)),
        ("rediss://[fe80::1%eth0]", "[fe80::1%eth0]:6379", ("fe80::1%eth0", 6379, "", "default", "", False, True)),
        ("unix:///run/a%20b.sock", "/run/a b.sock", ("", 0, "/run/a b.sock", "default", "", False, False)),
        ("unix://bob:pw@/run/x", "bob@/run/x", ("", 0, "/run/x", "bob", "pw", False, False)),
    ],
)
def test_an_engine_is_named_by_its_url(text: str, name: str, expected: tuple[object, ...]) -> None:
    url = parse_url(text)
    assert (url.host, url.port, url.path, url.user, url.password, url.is_cluster, url.is_tls) == expected
    assert url.name == name and repr(url) == str(url) == f"Url({name})"


def test_tls_has_options_of_its_own() -> None:
    url = parse_url("rediss://alpha?ca=/a%26b&cert=/c&key=/k&server_name=beta")
    assert (url.ca, url.cert, url.key, url.server_name) == ("/a&b", "/c", "/k", "beta")
    assert parse_url("rediss://alpha").server_name == "alpha", "unless another name is given"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("alpha:6379", "not the URL of an engine"),
        ("http://alpha", "not the URL of an engine"),
        ("redis://", "no host"),
        ("redis://alpha:port", "no such port"),
        ("redis://alpha:65536", "no such port"),
        ("redis://::1", "no such port"),
        ("redis://alpha/3", "only database 0"),
        ("redis://alpha#x", "not the URL of an engine"),
        ("redis://b b@alpha", "keys are named for the user"),
        ("redis://a:b%zz@alpha", "no two hex digits"),
        ("redis://a%00b@alpha", "its user holds a character"),
        ("redis://a\nb", "cannot be printed"),
        ("unix:///a%0Ab", "its path holds a character"),
        ("redis://alpha?db=0", "unknown option"),
        ("redis://alpha?cluster=1", "cluster=: no such choice"),
        ("redis://alpha?cluster=", "cluster= is empty"),
        ("redis://alpha?cluster=no&cluster=no", "given twice"),
        ("redis://alpha?ca=/x", "ca= is for TLS"),
        ("rediss://alpha?key=/x", "key= without cert="),
        ("rediss://alpha?server_name=.foo", "server_name=: not a name"),
        ("rediss://alpha?server_name=a..b", "server_name=: not a name"),
        ("rediss://alpha?server_name=" + "x" * 64, "server_name=: not a name"),
        ("unix://run/x", "no absolute path"),
        ("unix:///", "no absolute path"),
        ("unix:///" + "x" * 120, "too long for a Unix socket"),
        ("unix:///run/x?cluster=yes", "reached by TCP"),
        ("redis://:pw@alpha?password_file=/x", "has a password, and password_file="),
        ("redis://alpha?password_file=/not/there", "password_file=/not/there: No such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, what: str) -> None:
    with pytest.raises(BadInput, match=r"^remote=[^\n]*: [^\n]*; give [^\n]*$") as refused:
        parse_url(text)
    assert what in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        f"redis://:{HIDDEN}@alpha:x",
        f"redis://:{HIDDEN}@alpha/9",
        f"redis://bob:{HIDDEN}",
        f"redis://bob:{HIDDEN}@",
        f"redis://bob:/{HIDDEN}@alpha",
        f"redis://bob:?{HIDDEN}@alpha",
        f"redis://bob:#{HIDDEN}@alpha",
        f"redis://bob:@{HIDDEN}@alpha:x",
        f"redis://bob:%zz{HIDDEN}@alpha",
        f"redis://alpha?password={HIDDEN}",
        f"redis://alpha?{HIDDEN}",
        f"redis://b b:{HIDDEN}@alpha",
        f"unix://bob:{HIDDEN}/run/x",
        f"unix://bob:{HIDDEN}@/run/x?cluster=yes",
        f"redis://bob:1234/{HIDDEN}@alpha",
        f"redis://bob:1234?{HIDDEN}@alpha",
        f"redis://bob:1234?cluster={HIDDEN}@alpha",
        f"redis:bob:{HIDDEN}@alpha",
        f"bob:{HIDDEN}@alpha",
        f"http://bob:{HIDDEN}@alpha",
        f"redis://bob:{HIDDEN}\n@alpha",
    ],
)
def test_no_refusal_shows_a_password(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_url(text)
    assert HIDDEN not in str(refused.value)


def test_whatever_is_given_it_is_understood_or_refused_without_its_password(rng: random.Random) -> None:
    for _ in range(3000):
        parts = ["redis://", "rediss://", "unix://", "@", ":", "/", "?", "&", "=", "%", "[", "]", "a", "cluster"]
        noise = "".join(rng.choice([*parts, rng.choice(string.printable)]) for _ in range(rng.randrange(12)))
        text = f"redis://bob:{HIDDEN}{noise}@alpha" if rng.randrange(2) else noise
        try:
            shown = repr(parse_url(text))
        except BadInput as refused:
            shown = str(refused)
        assert HIDDEN not in shown and shown.isprintable()


def test_a_password_may_stand_in_a_file_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(b"p w%41\n")
    path.chmod(0o600)
    url = parse_url(f"redis://bob@alpha?password_file={path}")
    assert (url.password, url.warnings) == ("p w%41", ())
    path.chmod(0o640)
    (line,) = parse_url(f"redis://bob@alpha?password_file={path}").warnings
    assert f"chmod 600 {path}" in line
    for contents in (b"", b"\n", b"a\nb\n", b"x" * 2000):
        path.write_bytes(contents)
        with pytest.raises(BadInput, match="is not one line"):
            parse_url(f"redis://bob@alpha?password_file={path}")


def test_a_successor_may_read_the_password_later(tmp_path: Path) -> None:
    path = tmp_path / "password"
    url = parse_url(f"redis://bob@alpha?password_file={path}", is_successor=True)
    assert (url.password, url.password_file) == ("", str(path))
    with pytest.raises(BadInput, match=r"^remote=bob@alpha:6379: password_file=[^\n]*: No such file"):
        with_password(url)
    path.write_text(HIDDEN)
    assert with_password(url).password == HIDDEN
    with pytest.raises(BadInput, match="no such port"):
        parse_url("redis://alpha:port", is_successor=True)


def test_a_password_in_a_url_is_warned_of() -> None:
    (line,) = parse_url(f"redis://:{HIDDEN}@alpha").warnings
    assert "password_file=" in line and HIDDEN not in line


def test_addresses_are_looked_up() -> None:
    assert resolve(parse_url("unix:///run/x")) == [(socket.AF_UNIX, "/run/x")]
    assert resolve(parse_url("redis://127.0.0.1:7")) == [(socket.AF_INET, ("127.0.0.1", 7))]
    assert resolve(parse_url("redis://[::1]:7")) == [(socket.AF_INET6, ("::1", 7, 0, 0))]


def test_the_name_service_is_not_asked_where_it_must_not_be() -> None:
    assert resolve(parse_url("redis://[::1]:7"), may_ask=False) == [(socket.AF_INET6, ("::1", 7, 0, 0))]
    with pytest.raises(BadInput, match="not looked up yet"):
        resolve(parse_url("redis://localhost"), may_ask=False)


@pytest.mark.parametrize("host", ["not-there.invalid", "a..b", "x" * 70])
def test_a_host_that_nobody_knows_is_refused(host: str) -> None:
    with pytest.raises(BadInput, match=r"^remote=[^\n]*: unknown host [^\n]*; give [^\n]*$"):
        resolve(parse_url(f"redis://{host}"))


def test_certificates_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert tls_context(Url("alpha", 6379)) is None
    assert tls_context(parse_url("rediss://alpha"))
    (tmp_path / "garbage").write_text("no certificate")
    for name in ("garbage", "none"):
        with pytest.raises(BadInput, match=r"^remote=alpha:6379: ca=[^\n]*; give [^\n]*$"):
            tls_context(parse_url(f"rediss://alpha?ca={tmp_path}/{name}"))
        with pytest.raises(BadInput, match=r"^remote=alpha:6379: cert=[^\n]*; give [^\n]*$"):
            tls_context(parse_url(f"rediss://alpha?cert={tmp_path}/{name}"))
