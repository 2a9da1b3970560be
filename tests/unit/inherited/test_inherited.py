"""What of the environment, and which descriptors, are meant for the program that is started.

What the kernel hands on is looked at in real processes: tests/nbd/test_wrong_starts.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zcache.inherited import descriptors, environment
from zcache.steps import SECONDS_VARIABLE, VARIABLE


def test_what_is_meant_for_us_stays() -> None:
    meant = {"PATH": "/bin", "TMPDIR": "/x", "TZ": "UTC", "NBDKIT_GDB": "1", "ZCACHE_WITHOUT": "heap", "HOME": "/root"}
    found = dict(meant)
    environment.clean(found)
    assert found == {**meant, "LC_ALL": "C.UTF-8"}


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_AUDIT", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LOCPATH", "OPENSSL_CONF"]
)
def test_what_changes_libraries_is_gone_and_takes_another_exec(name: str) -> None:
    found = {name: "x"}
    assert environment.clean(found) and found == {"LC_ALL": "C.UTF-8"}


@pytest.mark.parametrize("name", ["PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"])
def test_what_an_image_of_a_container_says_costs_no_exec(name: str) -> None:
    found = {name: "1"}
    assert not environment.clean(found) and name in found


@pytest.mark.parametrize("name", ["LANG", "LANGUAGE", "LC_CTYPE", "LC_MESSAGES", "BASH_ENV"])
def test_what_is_for_what_we_start_is_gone(name: str) -> None:
    found = {name: "C"}
    assert not environment.clean(found) and found == {"LC_ALL": "C.UTF-8"}


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("backing=/dev/fd/9", {9}),
        ("clean=data:/proc/self/fd/12:ro", {12}),
        ("--tls-psk=/dev/fd/63", {63}),
        ("cat <&7 >&12 2>&1", {7, 12}),
        ("image=5", {5}),
        ("standby=6", {6}),
        ("size=64M", set()),
        ("backing=/srv/fd/x", set()),
        ("myimage=5", set()),
    ],
)
def test_descriptors_that_a_word_names(word: str, kept: set[int]) -> None:
    assert descriptors.named([word], {}) == {0, 1, 2} | kept


def test_sockets_and_the_pipe_of_the_steps_are_named_by_variables() -> None:
    assert descriptors.named([], {"LISTEN_FDS": "2", VARIABLE: "7"}) == {0, 1, 2, 3, 4, 7}
    assert descriptors.named([], {"LISTEN_FDS": "many", VARIABLE: "", "LISTEN_FDNAMES": "9"}) == {0, 1, 2}


@pytest.mark.parametrize(
    ("pid", "words", "is_meant"),
    [(None, [], True), ("own", [], True), ("1", [], False), ("1", ["standby=4"], True)],
)
def test_a_socket_is_for_the_process_that_is_named(pid: str | None, words: list[str], is_meant: bool) -> None:
    """A keeper passes on what it was given itself, and means its servers."""
    found = {"LISTEN_FDS": "1"} | ({"LISTEN_PID": str(os.getpid()) if pid == "own" else pid} if pid else {})
    descriptors.drop_strangers(found, words)
    assert ("LISTEN_FDS" in found) is is_meant


@pytest.mark.parametrize("number", ["1000", "x", "", "-1", "9" * 30])
def test_steps_that_nobody_reads_are_told_to_nobody(number: str) -> None:
    found = {VARIABLE: number, SECONDS_VARIABLE: "60"}
    descriptors.drop_strangers(found, [])
    assert found == {}


def test_steps_go_to_a_pipe_alone(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    for number, is_told in ((writer, True), (file, False)):
        found = {VARIABLE: str(number)}
        descriptors.drop_strangers(found, [])
        assert bool(found) is is_told
    for number in (reader, writer, file):
        os.close(number)


@pytest.mark.skipif(os.geteuid() != 0, reason="real time takes privileges")
@pytest.mark.parametrize(
    ("words", "policy"), [(["size=16M", "standby=9"], os.SCHED_RR), (["size=16M"], os.SCHED_OTHER)]
)
def test_a_keepers_server_is_real_time_from_its_start(words: list[str], policy: int) -> None:
    """Nobody else gets the memory that the keeper lends it, when there is no other server."""
    code = (
        "import os, sys\n"
        "from zcache.inherited.start import put_right\n"
        "os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))\n"
        "put_right(sys.argv[1:])\n"
        "print(os.sched_getscheduler(0))"
    )
    # What takes another exec is right by then: the outer one starts the inner one with all of it.
    outer = "import subprocess, sys; from zcache.inherited.start import put_right; put_right(); "
    outer += "sys.exit(subprocess.run([sys.executable, '-I', '-c', *sys.argv[1:]]).returncode)"
    command = [sys.executable, "-I", "-c", outer, code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == policy
