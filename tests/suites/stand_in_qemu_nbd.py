"""`qemu-nbd`, for QEMU's iotests: zcache with the size of a raw image that was made just now, and
is empty.

qemu-nbd [--pid-file=PATH] -v -t -k SOCKET -f raw -e NUMBER -x '' IMAGE
"""

import argparse
import contextlib
import os
import socket
import sys
from pathlib import Path

from tests.suites import serving


def main() -> None:
    """Becomes one or the other."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--pid-file", required=True)
    parser.add_argument("-v", action="store_true")
    parser.add_argument("-t", action="store_true", required=True)
    parser.add_argument("-k", dest="socket", required=True)
    parser.add_argument("-f", choices=["raw"], required=True)
    parser.add_argument("-e", required=True)
    parser.add_argument("-x", choices=[""], required=True)
    parser.add_argument("image", type=Path)
    words = sys.argv[1:]
    if os.environ[serving.SERVER] == serving.PLAIN or "-k" not in words:
        serving.become_the_real("qemu-nbd", words)
    given = parser.parse_args(words)
    size_bytes = given.image.stat().st_size
    reason = "an image that holds something" if _holds_something(given.image) else serving.refusal(size_bytes)
    if reason:
        serving.note(reason)
        serving.become_the_real("qemu-nbd", words)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(given.socket)
    serving.hand_over(listening)
    command = serving.command(["-f", "-P", given.pid_file], size_bytes, [])
    with (Path(os.environ[serving.FOLDER]) / "server.log").open("ab") as log:
        os.dup2(log.fileno(), 2)  # what it says is compared, too
    serving.become(command[0], command)


def _holds_something(image: Path) -> bool:
    """Whether there is a byte in it; qemu-img has its first block allocated."""
    with image.open("rb", buffering=0) as file, contextlib.suppress(OSError):  # at its last hole
        start = end = 0
        while True:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            if any(os.pread(file.fileno(), end - start, start)):
                return True
    return False
