"""Bad input: one line that names the key, what was given and what may be given; no socket, no
traceback, nothing overwritten."""

import socket
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD = {"size": "64M", "budget": "64M"}


def refusal(folder: Path, *words: str) -> str:
    """Start a server that must not start; its only line."""
    path = folder / "nbd.sock"
    command = [str(REPOSITORY / "scripts/serve"), "-U", str(path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert not path.exists()
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    return lines[0].removeprefix("zcache: ")


def with_words(**changes: str) -> list[str]:
    return [f"{key}={value}" for key, value in {**GOOD, **changes}.items()]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sise": "1G"}, ["sise=1G", "unknown parameter", "size, budget, backing"]),
        ({"size": "0"}, ["size=0", "more than zero", "512M"]),
        ({"size": "-4096"}, ["size=-4096", "more than zero"]),
        ({"size": "lots"}, ["size=lots", "not a number"]),
        ({"size": ""}, ["size=", "not a number"]),
        ({"size": "1e9"}, ["size=1e9", "not a number"]),
        ({"size": "25"}, ["size=25", "25 bytes", "25M"]),
        ({"budget": "25"}, ["budget=25", "25 bytes", "25M"]),
        ({"size": "10000"}, ["size=10000", "not whole pages", "12288"]),
        ({"size": "9" * 5000}, ["size=9", "not a number"]),
        ({"size": "4096ib"}, ["size=4096ib", "not a number"]),
        ({"budget": "\uff11_0%"}, ["share of RAM"]),
        ({"codec": "zstd:\uff11"}, ["not a number", "zstd:LEVEL"]),
        ({"control": "/tmp/" + "c" * 300}, ["control=/tmp/c", "107 bytes"]),
        ({"backing": "/tmp/" + "b" * 300}, ["backing=/tmp/b", "File name too long"]),
        ({"size": "16P"}, ["size=16P", "not a number"]),
        ({"size": "16T", "overcommit": "yes"}, ["size=16T", "at most 4T"]),
        ({"size": "65M"}, ["size=65M", "larger than budget=64M", "backing=PATH"]),
        ({"budget": "0"}, ["budget=0", "more than zero"]),
        ({"budget": "16K"}, ["budget=16K", "too small", "256K"]),
        ({"budget": "0%"}, ["budget=0%", "share of RAM"]),
        ({"budget": "150%"}, ["budget=150%", "at most 90%"]),
        ({"budget": "x%"}, ["budget=x%", "share of RAM"]),
        ({"budget": "512T"}, ["budget=", "bytes of RAM"]),
        ({"budget": "64M..16M"}, ["budget=64M..16M", "give the smaller one first"]),
        ({"budget": "16M..64M"}, ["size=64M", "larger than budget=16M..64M", "backing=PATH"]),
        ({"budget": "16M.."}, ["budget=16M..", "one end is missing", "64M..25%"]),
        ({"budget": "..64M"}, ["budget=..64M", "one end is missing"]),
        ({"budget": "16K..64M", "overcommit": "yes"}, ["budget=16K..64M", "too small"]),
        ({"codec": "lzo"}, ["codec=lzo", "no such codec", "zstd:LEVEL"]),
        ({"codec": "zstd:99"}, ["codec=zstd:99", "zstd:LEVEL"]),
        ({"allocator": "slab"}, ["allocator=slab", "zbud"]),
        ({"overcommit": "maybe"}, ["overcommit=maybe", "yes or no"]),
        ({"force": "1"}, ["force=1", "yes or no"]),
        ({"hardening": "on"}, ["hardening=on", "require or warn or off"]),
        ({"encrypt": "aes"}, ["encrypt=aes", "yes or no"]),
        ({"encrypt": "yes"}, ["encrypt=yes", "nothing leaves RAM", "backing=PATH"]),
        ({"backing": ""}, ["backing=", "empty"]),
        ({"backing": "/"}, ["backing=/", "is a directory"]),
        ({"backing": "/no/such/folder/b"}, ["backing=/no/such/folder/b", "folder does not exist"]),
        ({"control": "/no/such/folder/c"}, ["control=/no/such/folder/c", "folder does not exist"]),
        ({"control": "/proc/version"}, ["control=/proc/version", "something else is there"]),
        ({"control": "/tmp/two\nlines"}, ["control=/tmp/two\\nlines", "cannot be printed"]),
        ({"backing": "/tmp/\udcff"}, ["backing=/tmp/\\udcff", "not UTF-8"]),
    ],
)
def test_one_line(tmp_path: Path, changes: dict[str, str], said: list[str]) -> None:
    line = refusal(tmp_path, *with_words(**changes))
    for part in said:
        assert part in line


def test_a_page_loop_that_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZCACHE_PAGE_LOOP", "COMPILED")
    assert refusal(tmp_path, *with_words()) == "ZCACHE_PAGE_LOOP=COMPILED: give python or compiled"


def test_places_to_listen_that_are_taken(tmp_path: Path) -> None:
    folder, file, socket_path = tmp_path / "folder", tmp_path / "file", tmp_path / "socket"
    folder.mkdir()
    file.write_text("a letter")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        for path, why in (
            (folder, "something else is there"),
            (file, "something else is there"),
            (socket_path, "a server listens there"),
            (tmp_path / "no" / "socket", "its folder does not exist"),
        ):
            done = subprocess.run(
                [REPOSITORY / "scripts/serve", "-U", path, "size=1M", "budget=4M"],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 1
            assert done.stderr.startswith(f"zcache: -U {path}: {why}; ") and done.stderr.count("\n") == 1
    assert file.read_text() == "a letter" and socket_path.is_socket()


def test_missing_and_repeated_keys(tmp_path: Path) -> None:
    assert refusal(tmp_path, "budget=64M").startswith("size=: missing")
    assert refusal(tmp_path, "size=64M").startswith("budget=: missing")
    assert "given twice" in refusal(tmp_path, *with_words(), "size=32M")


def test_backing_files_that_are_refused(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"a letter" + bytes(64 << 20))
    before = precious.read_bytes()
    line = refusal(tmp_path, *with_words(size="96M", backing=str(precious)))
    assert f"backing={precious}" in line and "force=yes" in line
    assert precious.read_bytes() == before
    small = tmp_path / "small"
    small.write_bytes(bytes(1 << 20))
    assert "too small" in refusal(tmp_path, *with_words(size="96M", backing=str(small)))


def test_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    """Whatever came before what was wrong is undone: the control socket, a backing file that was
    made."""
    control, backing = tmp_path / "control", tmp_path / "backing"
    assert "is a directory" in refusal(tmp_path, *with_words(backing="/", control=str(control)))
    assert "something else is there" in refusal(tmp_path, *with_words(backing=str(backing), control="/proc/version"))
    words = with_words(size="96M", backing=str(backing), control=str(control), hardening="require")
    command = [
        "env",
        "ZCACHE_WITHOUT=small_pages",
        str(REPOSITORY / "scripts/serve"),
        "-U",
        str(tmp_path / "s"),
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "NOT safe" in done.stderr
    assert not control.exists() and not backing.exists()


def test_hardening_require_refuses_to_serve_where_a_protection_does_not_hold(tmp_path: Path) -> None:
    """With one left out on request, so that this holds on any machine."""
    command = [str(REPOSITORY / "scripts/serve"), "-U", str(tmp_path / "s"), *with_words(hardening="require")]
    done = subprocess.run(
        ["env", "ZCACHE_WITHOUT=small_pages", *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "hardening=require: NOT safe" in done.stderr and "small_pages (left out on request)" in done.stderr


def test_a_captive_server_that_refuses_ends_its_command() -> None:
    """nbdkit has bound the socket and started the command by then, and the command has connected,
    or is about to."""
    command = [
        str(REPOSITORY / "scripts/serve"),
        "-U",
        "-",
        "--run",
        'nbdinfo "$uri"',
        *with_words(hardening="require"),
    ]
    done = subprocess.run(
        ["env", "ZCACHE_WITHOUT=small_pages", *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0 and "hardening=require: NOT safe" in done.stderr, done.stderr
    assert done.stdout == ""


def test_a_captive_server_leaves_no_folder() -> None:
    """It has given up the file system by then, but for this."""
    command = [str(REPOSITORY / "scripts/serve"), "-U", "-", "--run", 'echo "$unixsocket"; nbdinfo --size "$uri"']
    done = subprocess.run([*command, *with_words()], capture_output=True, text=True, timeout=60, check=False)
    path, size = done.stdout.split()
    assert size == str(64 << 20) and done.returncode == 0
    assert not Path(path).exists() and not Path(path).parent.exists()


def test_hardening_off_serves(tmp_path: Path) -> None:
    command = [str(REPOSITORY / "scripts/serve"), "-U", str(tmp_path / "s"), "--run", "nbdinfo --size $uri"]
    done = subprocess.run(
        [*command, *with_words(hardening="off")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and done.stdout.strip() == str(64 << 20), done.stderr
    assert "hardening=off: NOT safe" in done.stderr
