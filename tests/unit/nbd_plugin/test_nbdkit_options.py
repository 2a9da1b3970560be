"""nbdkit's options: how they are found, and which are refused or warned of."""

from pathlib import Path

import pytest

from nbd_plugin.nbdkit_options import arguments_of, refuse_no_keys, refuse_what_opens_later, warnings_of
from zcache.errors import BadInput


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["-t", "8"], ["8"]),
        (["-t8"], ["8"]),
        (["--threads=8", "-v", "-t", "2"], ["8", "2"]),
        (["--threads", "8"], ["8"]),
        (["--tls=on", "-t"], []),
    ],
)
def test_an_argument_is_found_however_it_is_given(words: list[str], found: list[str]) -> None:
    assert arguments_of(words, "-t", "--threads") == found


@pytest.mark.parametrize(
    ("version", "aborts"),
    [
        ("nbdkit 1.30.7", False),
        ("nbdkit 1.32.3", False),
        ("nbdkit 1.32.4", True),
        ("nbdkit 1.32.5", True),
        ("nbdkit 1.33.9", True),
        ("nbdkit 1.33.10", False),
        ("nbdkit 1.42.3 (nbdkit-1.42.3-1)", False),
        ("", False),
    ],
)
def test_whoever_gives_threads_is_warned_where_nbdkit_aborts(version: str, aborts: bool) -> None:
    for options in (["-t", "8"], ["-t16"], ["--threads=2"]):
        lines = list(warnings_of(options, version))
        assert len(lines) == aborts
        for line in lines:
            assert version in line and "aborts" in line and "give -t 1" in line
    assert not list(warnings_of(["-t", "1"], version)) and not list(warnings_of(["-v"], version))


def test_syslog_is_warned_of() -> None:
    (line,) = warnings_of(["--log=syslog"], "")
    assert line.startswith("--log=syslog: NOT safe")
    assert not list(warnings_of(["--log=stderr"], ""))


@pytest.mark.parametrize(
    ("options", "parameters", "said"),
    [
        (["--filter=gzip"], [], "--filter=gzip: "),
        (["--filter", "tar"], ["tar-entry=disk"], "--filter=tar: "),
        (["--filter=rate"], ["rate-file=/tmp/r"], "rate-file=/tmp/r: "),
        (["--filter=log"], ["logscript=echo"], "logscript=echo: "),
        (["--filter=rate"], ["rate=1M"], ""),
        (["--filter=log"], ["logfile=/tmp/l"], ""),
        (["--filter=gzip"], ["hardening=off"], ""),
    ],
)
def test_what_opens_something_later_is_refused(options: list[str], parameters: list[str], said: str) -> None:
    if not said:
        refuse_what_opens_later(options, parameters)
        return
    with pytest.raises(BadInput) as refusal:
        refuse_what_opens_later(options, parameters)
    assert str(refusal.value).startswith(said) and "hardening=off" in str(refusal.value)


def test_keys_that_are_none_are_refused(tmp_path: Path) -> None:
    """nbdkit would take them, and refuse every client."""
    empty, keys = tmp_path / "empty", tmp_path / "keys"
    empty.write_text("\n")
    keys.write_text("user:00ff\n")
    refuse_no_keys(["-U", "/s", f"--tls-psk={keys}"])
    for path, why in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "not a regular file"),
        ("/dev/null", "not a regular file"),
        (empty, "no key is in it"),
    ):
        with pytest.raises(BadInput, match=f"^--tls-psk={path}: {why}; give "):
            refuse_no_keys(["--tls=require", "--tls-psk", str(path)])
