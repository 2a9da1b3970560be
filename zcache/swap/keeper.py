"""The keeper: holds the image, keeps it in memory, and puts a new server behind the device when one has died.

It must never need the swap that it guards. So it is small, locked in memory as the server is, speaks to nothing that
can wait for swap, and loads nothing once the swap is on: the netlink message that gives the kernel a new connection is
made beforehand, by pyroute2 in swap-up (`reconnection.py`), and only sent here; the NBD handshake is libnbd's. Whether
the device is connected, and the server alive, it sees in the image (`image.Signs`): it asks nobody.

The image is a memfd, and so swappable: a lock on it holds for pages that the locking process has mapped in. The
keeper maps the whole of it and faults in, a few times a second, what the server has populated since: always well ahead
of what is in use, so that every page is locked twice, and still once when the server is gone.

Life: `python -m zcache.swap.keeper FOLDER key=value…`. SIGTERM ends the server, then the keeper; not while the
kernel swaps to the device: nothing that ends processes, a shutdown included, gets at the pages before swapoff. SIGUSR1
ends the server alone, so that the code that is on disk now takes its place (swap-upgrade has made sure that it can).
"""

import contextlib
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zcache import image, libc
from zcache.hardening import Hardening
from zcache.swap.error import SwapError
from zcache.swap.proc_swaps import ProcSwaps
from zcache.swap.reconnection import Reconnection, ServerNotThereError
from zcache.swap.state import StateFolder

#: What it needs of what the server needs: it serves no requests, so its heap and code may fault.
PROTECTIONS: Final = ("io_flusher", "real_time", "small_pages", "memory_lock", "oom_score", "stderr", "shutdown")

#: What becomes the server. Not scripts/serve: that looks at the set-up first, which takes memory and time.
SERVE: Final = (sys.executable, "-P", "-m", "nbd_plugin.serve")

#: Ends the server alone.
REPLACE_SIGNAL: Final = signal.SIGUSR1

#: How often the server, and what has been populated of the image, is looked at.
LOOK_SECONDS: Final = 0.1
#: A server that lived this long has not failed at its start: the next one is started at once.
STABLE_SECONDS: Final = 5.0
#: A server whose own threads have not run for this long never will: the next one has all that it had. Ten times the
#: longest that was seen under emulation.
HEARTBEAT_SECONDS: Final = 60.0
#: Between two starts, after one that failed: doubled each time.
FIRST_REST_SECONDS: Final = 0.5
LAST_REST_SECONDS: Final = 8.0
#: How long a server may take to end when it is told to.
END_SECONDS: Final = 30.0


class LockedImage:
    """A memfd for the image, mapped and locked as far as it is populated."""

    def __init__(self) -> None:
        self.descriptor = image.new_descriptor()
        self.signs: image.Signs | None = None
        self._memory: mmap.mmap | None = None
        self._blocks = 0

    def keep(self) -> None:
        """Fault in what has come since the last call; nothing is ever let go."""
        status = os.fstat(self.descriptor)
        if not status.st_size or status.st_blocks == self._blocks:
            return
        if self._memory is None:
            self._memory = mmap.mmap(self.descriptor, status.st_size)
            self.signs = image.Signs(self.descriptor)
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
    """The loop: lock, watch, replace, reconnect."""

    def __init__(self, folder: StateFolder, parameters: Sequence[str], errors: int) -> None:
        self._folder = folder
        place = ["-U", str(folder.socket), "-P", str(folder.pidfile)]
        self._words = [*place, f"control={folder.control}", *parameters]
        self._errors = errors
        self._image = LockedImage()
        self._reconnection: Reconnection | None = None
        self._device: str | None = None
        self._swaps = ProcSwaps()
        self._ending = self._is_to_be_replaced = False
        self._rest_seconds = FIRST_REST_SECONDS
        self._is_broken_since: float | None = None
        self._complaint = ""
        self._heartbeats = -1
        self._beat_seconds = time.monotonic()
        self._server = self._start()

    def run(self) -> int:
        """Until SIGTERM, or until the server ends before swap-up has made us its keeper; exit status."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(REPLACE_SIGNAL, self._on_signal)
        wakeup, signalled = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(signalled)
        while True:
            poll = select.poll()
            poll.register(self._server.pidfd, select.POLLIN)
            poll.register(wakeup, select.POLLIN)
            poll.poll(LOOK_SECONDS * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 64)
            self._look()
            if self._ending and not self._is_swapping():
                break
            self._ending = False
            if self._is_to_be_replaced:
                self._is_to_be_replaced = False
                _say("ending the server, for the code that is on disk now")
                self._is_broken_since = time.monotonic()
                self._server.end()
            if self._server.has_ended():
                if not self._reconnection:
                    return 1  # it has said why
                self._replace()
            elif self._is_cut_off():
                self._reconnect()
        self._server.end()
        return 0

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            self._ending = True
        else:
            self._is_to_be_replaced = True

    def _start(self) -> ServerProcess:
        return ServerProcess([*SERVE, *self._words], self._image.descriptor, self._errors)

    def _look(self) -> None:
        """What has to be done all the time, whatever else is being waited for."""
        self._image.keep()
        if self._reconnection is None and self._folder.reconnection.exists():
            message = self._folder.reconnection.read_bytes()
            self._reconnection = Reconnection(message, self._folder.socket)
            state = self._folder.load()
            self._device = state.device if state else None
            self._folder.armed.touch()
        heartbeats = self._image.signs.heartbeats if self._image.signs else 0
        if not heartbeats or heartbeats != self._heartbeats:  # none yet: it is starting, and may look at a whole disk
            self._heartbeats, self._beat_seconds = heartbeats, time.monotonic()
        elif time.monotonic() - self._beat_seconds > HEARTBEAT_SECONDS:
            _say(f"no sign of life from the server for {HEARTBEAT_SECONDS:.0f} s: ending it")
            self._server.process.kill()
            self._beat_seconds = time.monotonic()

    def _is_swapping(self) -> bool:
        if not (self._device and self._swaps.find(self._device)):
            return False
        _say(f"not ending: the kernel swaps to {self._device}; take that off first (swap-down)")
        return True

    def _is_cut_off(self) -> bool:
        """Whether the device has no connection to a server that runs.

        The connection ends with the last of its requests, so a write that the kernel gave up waiting for is
        over before the kernel can send it again: it will never overwrite what came after it.
        """
        signs = self._image.signs
        return bool(
            self._reconnection and signs and not signs.connections and self._folder.reconnection.exists()
        )  # swap-down takes the message away before it detaches the device

    def _replace(self) -> None:
        """The server has ended: start the next one."""
        now = time.monotonic()
        self._is_broken_since = self._is_broken_since or now
        _say(f"the server ended with status {self._server.process.returncode}: starting the next one")
        self._server.close()
        if now - self._server.since > STABLE_SECONDS:
            self._rest_seconds = FIRST_REST_SECONDS
        else:
            time.sleep(self._rest_seconds)
            self._rest_seconds = min(2 * self._rest_seconds, LAST_REST_SECONDS)
        self._server = self._start()
        self._beat_seconds = time.monotonic()

    def _reconnect(self) -> None:
        """Connect the device to the server, which may still be starting; tried again at the next look."""
        assert self._reconnection
        begin = self._is_broken_since = self._is_broken_since or time.monotonic()
        try:
            self._reconnection.connect(self._is_worth_waiting)
        except ServerNotThereError:
            return  # yet
        except SwapError as error:
            if str(error) != self._complaint:  # it is tried again ten times a second
                self._complaint = str(error)
                _say(self._complaint)
            return
        self._complaint = ""
        _say(f"the device is connected again, after {time.monotonic() - begin:.1f} s")
        self._is_broken_since = None

    def _is_worth_waiting(self) -> bool:
        self._look()
        return not (self._ending or self._server.has_ended())


def _say(line: str) -> None:
    sys.stderr.write(f"zcache keeper: {time.monotonic():.1f} s: {line}\n")
    sys.stderr.flush()


def main(words: Sequence[str]) -> int:
    """`FOLDER key=value…`: returns when SIGTERM has ended both."""
    folder = StateFolder(Path(words[0]))
    errors = os.dup(2)  # the server's; ours goes through a pipe that cannot block
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
