"""The keeper: holds the image, keeps it in memory, and puts a new server behind the device when one has died.

It must never need the swap that it guards. So it is small, locked in memory as the server is, speaks to nothing that
can wait for swap, and loads nothing once the swap is on: the netlink message that gives the kernel a new connection is
made beforehand, by pyroute2 in swap-up (`reconnection.py`), and only sent here; the NBD handshake is libnbd's.

The image is a memfd, and so swappable: a lock on it holds for pages that the locking process has mapped in. The
keeper maps the whole of it and faults in, a few times a second, what the server has populated since: always well ahead
of what is in use, so that every page is locked twice, and still once when the server is gone.

Life: `python -m zcache.swap.keeper FOLDER SERVE key=value…`. SIGTERM ends the server, then the keeper. SIGUSR1 replaces
the server by the code that is on disk now, if that can read the image.
"""

import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zcache import image, libc
from zcache.hardening import Hardening
from zcache.swap.error import SwapError
from zcache.swap.reconnection import Reconnection
from zcache.swap.state import StateFolder

#: What it needs of what the server needs: it serves no requests, so its heap and code may fault.
PROTECTIONS: Final = ("io_flusher", "real_time", "small_pages", "memory_lock", "oom_score", "stderr")

#: How often the image is looked at for what has been populated since.
LOCK_SECONDS: Final = 0.2
#: A server that lived this long has not failed at its start: the next one is started at once.
STABLE_SECONDS: Final = 5.0
#: How often a starting server is asked whether it serves yet, and how long it may take to say so.
READY_SECONDS: Final = 0.05
ANSWER_SECONDS: Final = 5.0
#: Between two starts, after one that failed: doubled each time.
FIRST_REST_SECONDS: Final = 0.5
LAST_REST_SECONDS: Final = 8.0
#: How long a server may take to end when it is told to.
END_SECONDS: Final = 30.0


class LockedImage:
    """A memfd for the image, mapped and locked as far as it is populated."""

    def __init__(self) -> None:
        self.descriptor = image.new_descriptor()
        self._memory: mmap.mmap | None = None
        self._blocks = 0

    def keep(self) -> None:
        """Fault in what has come since the last call; nothing is ever let go."""
        status = os.fstat(self.descriptor)
        if not status.st_size or status.st_blocks == self._blocks:
            return
        if self._memory is None:
            self._memory = mmap.mmap(self.descriptor, status.st_size)
        start = 0
        address = libc.address(self._memory)
        while True:
            try:
                start = os.lseek(self.descriptor, start, os.SEEK_DATA)
            except OSError:  # nothing but a hole from here on
                break
            stop = os.lseek(self.descriptor, start, os.SEEK_HOLE)
            libc.populate_range(address + start, address + stop, write=False)
            start = stop
        self._blocks = status.st_blocks


class ServerProcess:
    """One server, from its start to its end."""

    def __init__(self, command: Sequence[str], descriptor: int, errors: int) -> None:
        arguments = [*command, f"image={descriptor}"]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, pass_fds=(descriptor,)
        )
        self.pidfd = os.pidfd_open(self.process.pid)
        self.since = time.monotonic()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> None:
        """By SIGTERM, and by SIGKILL if that does not help."""
        self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        os.close(self.pidfd)


class Keeper:
    """The loop: lock, watch, replace."""

    def __init__(self, folder: StateFolder, command: Sequence[str], errors: int) -> None:
        self._folder = folder
        self._command = command
        self._errors = errors
        self._image = LockedImage()
        self._reconnection: Reconnection | None = None
        self._ending = self._upgrading = False
        self._has_served = False
        self._rest_seconds = FIRST_REST_SECONDS
        self._server = self._start()

    def run(self) -> int:
        """Until SIGTERM, or until the first server ends without ever having served; exit status."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_signal)
        wakeup, signalled = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(signalled)
        while not self._ending:
            poll = select.poll()
            poll.register(self._server.pidfd, select.POLLIN)
            poll.register(wakeup, select.POLLIN)
            poll.poll(LOCK_SECONDS * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 64)
            self._image.keep()
            self._arm()
            if self._upgrading:
                self._upgrading = False
                self._upgrade()
            self._has_served = self._has_served or _answers(self._folder.control)
            if self._server.has_ended() and not self._ending:
                if not self._has_served:
                    return 1  # it has said why
                self._replace()
        self._server.end()
        return 0

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            self._ending = True
        else:
            self._upgrading = True

    def _start(self) -> ServerProcess:
        return ServerProcess(self._command, self._image.descriptor, self._errors)

    def _arm(self) -> None:
        """Once swap-up has left the message, and before it turns the swap on: be able to use it."""
        if self._reconnection is None and self._folder.reconnection.exists():
            message = self._folder.reconnection.read_bytes()
            self._reconnection = Reconnection(message, self._folder.socket)
            self._folder.armed.touch()

    def _upgrade(self) -> None:
        """The server makes way for the code on disk, if that says that it can read the image."""
        command = [sys.executable, "-P", "-m", "zcache.image", str(self._image.descriptor)]
        check = subprocess.run(command, pass_fds=(self._image.descriptor,), stderr=self._errors, check=False)
        if check.returncode:
            _say("upgrade: the code on disk refuses the image; the server goes on as it is")
            return
        _say("upgrade: replacing the server")
        self._server.end()

    def _replace(self) -> None:
        """The server has ended: start the next one, and the next, until one serves."""
        begin = time.monotonic()
        status = self._server.process.returncode
        self._server.close()
        if time.monotonic() - self._server.since > STABLE_SECONDS:
            self._rest_seconds = FIRST_REST_SECONDS
        else:
            time.sleep(self._rest_seconds)
            self._rest_seconds = min(2 * self._rest_seconds, LAST_REST_SECONDS)
        self._server = self._start()
        while not self._ending and not self._server.has_ended():
            if _answers(self._folder.control):
                self._reconnect()
                seconds = time.monotonic() - begin
                _say(f"the server ended with status {status}; the next one serves after {seconds:.1f} s")
                return
            self._image.keep()
            time.sleep(READY_SECONDS)

    def _reconnect(self) -> None:
        if self._reconnection:
            try:
                self._reconnection.connect()
            except SwapError as error:
                _say(str(error))
                self._server.end()  # the next one is tried in its place


def _answers(control: Path) -> bool:
    """Whether a server answers there: it does so last of all, when it has taken everything over."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_SECONDS)
            client.connect(str(control))
            client.sendall(b"status\n")
            return bool(client.recv(1))
    except OSError:
        return False


def _say(line: str) -> None:
    sys.stderr.write(f"zcache keeper: {line}\n")
    sys.stderr.flush()


def main(words: Sequence[str]) -> int:
    """`FOLDER COMMAND…`: returns when SIGTERM has ended both."""
    folder = StateFolder(Path(words[0]))
    errors = os.dup(2)  # the server's; ours goes through a pipe that cannot block
    libc.forbid_core_dumps()
    hardening = Hardening(lambda: None, lambda: True, only=PROTECTIONS)
    hardening.apply()
    hardening.self_check()
    keeper = Keeper(folder, words[1:], errors)
    hardening.start()
    _say(hardening.verdict())
    status = keeper.run()
    hardening.close()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
