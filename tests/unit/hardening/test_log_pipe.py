"""The pipe in front of stderr, each time in a process of its own, because it takes file descriptor
2 over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zcache.hardening.log_pipe import FULL, LEAST_BYTES, MAX_FILE_BYTES

LATE_WORDS = """
import sys
from zcache.hardening.log_pipe import LogPipe, is_log_pipe
pipe = LogPipe()
assert is_log_pipe(2) and not is_log_pipe(1)
pipe.start()
sys.stderr.write("late words\\n")
pipe.close()
assert not is_log_pipe(2)
"""

TALK = """
import os, time
from zcache.hardening.log_pipe import LogPipe
pipe = LogPipe()
pipe.start()
written = 0
while written < 4 << 20:
    try:
        written += os.write(2, b"nbdkit: debug: " + b"x" * 984 + b"\\n")
    except BlockingIOError:
        if EAGER:
            break
        time.sleep(0.0005)
print("went on", flush=True)
os._exit(0)
"""

NOISE = """
import os, time
from zcache.hardening.log_pipe import SAID, LogPipe
def say(*pieces):
    for piece in pieces:
        while True:
            try:
                os.write(2, piece.encode())
                break
            except BlockingIOError:
                time.sleep(0.0005)
pipe = LogPipe()
pipe.start()
for number in range(1, 301):
    say("@bdkit: ", f"python[{number}]: ", "error: ", f"client {number} sent nonsense", "\\n")
    say("nbdkit: error: plugin.py: pread: error: EIO" + SAID, "\\n")
    if number in (1, 150, 300):
        say(f"zcache keeper: the device is connected again, after {number} s\\n")
pipe.close()
"""

TORN = """
import os, sys
from zcache.hardening.log_pipe import SAID, LogPipe
pipe = LogPipe()
pipe.start()
os.write(2, sys.argv[1].replace("SAID", SAID).encode() + b"zcache: the same again, 799 times in 1 s: x\\n")
pipe.close()
"""

DEATH = """
import os
from zcache.hardening.log_pipe import LogPipe
pipe = LogPipe()
heirs_end, heir_lives = os.pipe()
if os.fork() == 0:
    pipe.renew()
    death, alive = os.pipe()
    if os.fork() == 0:
        pipe.renew()
        os.close(alive)
        os.read(death, 1)
        pipe.start()
        os.write(2, b"late words\\n")
        pipe.close()
        os._exit(0)
    os.write(2, b"last words\\n")
    os._exit(0)
os.close(heir_lives)
os.read(heirs_end, 1)
"""

ABORT = """
import ctypes, os
from zcache.linux import libc
from zcache.hardening.log_pipe import LogPipe
libc.forbid_core_dumps()
pipe = LogPipe()
pipe.start()
libc.put_off_abort()
os.write(2, b"nbdkit: Assertion failed\\n")
ctypes.CDLL(None).abort()
"""


def run(script: str, stderr: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60, check=False)


def test_what_is_said_arrives(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        assert run(LATE_WORDS, log.fileno()).returncode == 0
    assert (tmp_path / "log").read_text() == "late words\n"


def test_a_reader_that_stands_still_stops_nobody() -> None:
    read_fd, write_fd = os.pipe()  # holds 64 KiB, and nobody reads
    try:
        assert run(TALK.replace("EAGER", "True"), write_fd).stdout == "went on\n"
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_a_log_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        assert run(TALK.replace("EAGER", "False"), log.fileno()).stdout == "went on\n"
    assert MAX_FILE_BYTES <= (tmp_path / "log").stat().st_size < MAX_FILE_BYTES + 2 * 4096
    assert (tmp_path / "log").read_text().splitlines()[-1] == FULL


def test_a_log_file_that_others_have_filled_has_room_for_what_matters(tmp_path: Path) -> None:
    """The line of the start among it; and then it ends."""
    (tmp_path / "log").write_bytes(b"others\n" * MAX_FILE_BYTES)
    size_bytes = (tmp_path / "log").stat().st_size
    with (tmp_path / "log").open("a") as log:
        assert run(LATE_WORDS, log.fileno()).returncode == 0
        assert run(TALK.replace("EAGER", "False"), log.fileno()).stdout == "went on\n"
    said = (tmp_path / "log").read_bytes()[size_bytes:]
    assert said.startswith(b"late words\n") and said.splitlines()[-1].decode() == FULL
    assert LEAST_BYTES <= len(said) < LEAST_BYTES + 3 * 4096


def test_what_comes_again_is_counted(tmp_path: Path) -> None:
    """Of others, however it arrives in pieces; what a callback has said already is not passed on at
    all. Our own lines are each passed on: two deaths are two lines."""
    with (tmp_path / "log").open("w") as log:
        assert run(NOISE, log.fileno()).returncode == 0
    lines = (tmp_path / "log").read_text().splitlines()
    events = [f"zcache keeper: the device is connected again, after {number} s" for number in (1, 150, 300)]
    assert lines[:4] == ["nbdkit: python[1]: error: client 1 sent nonsense", *events]
    assert len(lines) == 5 and lines[4].startswith("zcache: the same again, 299 times in "), lines
    assert lines[4].endswith(": nbdkit: python[300]: error: client 300 sent nonsense"), lines


@pytest.mark.parametrize(
    "torn",
    [
        "nbdkit: ",
        "nbdkit: [2]: ",
        "@bdkit: python[2]: error: ",
        "nbdkit: nbdkit: python: ",
        "[2]: error: ",
        ": ",
        "nbdkit: python[2]: error: plugin.py: pread: error: EIOSAID",
    ],
)
def test_a_line_of_ours_begins_a_line(tmp_path: Path, torn: str) -> None:
    """nbdkit writes its lines in pieces, and a full pipe takes some of them."""
    with (tmp_path / "log").open("w") as log:
        assert run(TORN, log.fileno(), torn).returncode == 0
    assert (tmp_path / "log").read_text() == "zcache: the same again, 799 times in 1 s: x\n"


@pytest.mark.parametrize("before", ["nbdkit: debug: ", "nbdkit: python[1]: debug: ", "nbdkit: no plugin in /opt/"])
def test_what_only_names_us_is_left_whole(tmp_path: Path, before: str) -> None:
    with (tmp_path / "log").open("w") as log:
        assert run(TORN, log.fileno(), before).returncode == 0
    assert (tmp_path / "log").read_text() == f"{before}zcache: the same again, 799 times in 1 s: x\n"


@pytest.mark.parametrize("torn", ["nbdkit:", "nbdkit: python", "@bdkit: nbdkit: python[2]: error:", "[2]: error:"])
def test_a_line_without_words_is_none(tmp_path: Path, torn: str) -> None:
    with (tmp_path / "log").open("w") as log:
        assert run(TORN, log.fileno(), f"{torn}\n").returncode == 0
    assert (tmp_path / "log").read_text() == "zcache: the same again, 799 times in 1 s: x\n"


def test_an_heir_says_the_last_words_of_whom_it_succeeds(tmp_path: Path) -> None:
    """And of nobody else: not what the one before that has said."""
    with (tmp_path / "log").open("w") as log:
        assert run(DEATH, log.fileno()).returncode == 0
    assert (tmp_path / "log").read_text().splitlines() == ["last words", "late words"]


@pytest.mark.slow
def test_an_abort_is_put_off_until_it_has_been_said(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        assert run(ABORT, log.fileno()).returncode == -signal.SIGABRT
    assert (tmp_path / "log").read_text() == "nbdkit: Assertion failed\n"
