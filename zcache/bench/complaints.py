"""A server with much to complain of and nobody to read it: what its stderr protection is against.

A store that is full by its own fault (overcommit) fails each write, and nbdkit prints each failure,
with the GIL held. stderr is a pipe that nobody reads. Without the protection the server stands
still once the pipe is full.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import nbd

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PAGE_BYTES: Final = 4096
#: Each is some 100 bytes of complaint, and a pipe holds 64 KiB.
FAILING_WRITES: Final = 2000
ANSWER_SECONDS: Final = 10
START_SECONDS: Final = 30


def complain(folder: Path, without: str) -> str:
    """Make a server in `folder` fail many writes; how that went, in a few words. `without`: `all`,
    or a protection."""
    socket = folder / f"complaints-{without}.sock"
    command = [sys.executable, "-m", "nbd_plugin.serve", "-U", str(socket), "size=16M", "budget=1M", "overcommit=yes"]
    environment = {**os.environ, "ZCACHE_WITHOUT": "" if without == "all" else without}
    read_fd, write_fd = os.pipe()
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=write_fd, stdout=write_fd) as server:
        try:
            os.close(write_fd)
            answered = fail_writes(socket, FAILING_WRITES)
        finally:
            os.close(read_fd)  # what blocks the server, if anything does
            server.send_signal(signal.SIGTERM)
            server.wait(START_SECONDS)
    if answered < FAILING_WRITES:
        return f"STOOD STILL after {answered} failed requests"
    return f"answered {answered} failing requests"


def fail_writes(socket: Path, count: int) -> int:
    """How many of `count` failing writes were answered, by a server of 16 MiB with too small a
    budget."""
    client = nbd.NBD()
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.connect_unix(str(socket))
            break
        except nbd.Error:
            if time.monotonic() > deadline:
                raise
            client = nbd.NBD()
            time.sleep(0.1)
    failed = page = 0
    while failed < count:
        data = nbd.Buffer.from_bytearray(bytearray(os.urandom(PAGE_BYTES)))
        cookie = client.aio_pwrite(data, page % 4096 * PAGE_BYTES)
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            while not client.aio_command_completed(cookie):
                if time.monotonic() > deadline:
                    return failed
                client.poll(ANSWER_SECONDS * 1000)
        except nbd.Error:
            failed += 1
        page += 1
    client.shutdown()
    return failed
