"""The pipe in front of stderr, each time in a process of its own, because it takes file descriptor 2 over."""

import os
import subprocess
import sys
from pathlib import Path

from zcache.hardening.log_pipe import MAX_FILE_BYTES

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
        written += os.write(2, b"x" * 999 + b"\\n")
    except BlockingIOError:
        if EAGER:
            break
        time.sleep(0.0005)
print("went on", flush=True)
os._exit(0)
"""


def run(script: str, stderr: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", script]
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
    assert MAX_FILE_BYTES <= (tmp_path / "log").stat().st_size < MAX_FILE_BYTES + 4096
