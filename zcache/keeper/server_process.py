"""A server as its keeper sees it: a process that begins to serve when it is told to.

It inherits three descriptors: the socket to listen on (systemd's protocol, sd_listen_fds(3), which
nbdkit speaks: so the socket stays where it is when servers come and go), the image, and its channel
(`channel.py`). On that it says that it is ready, as a standby, is told to begin, and then names its
heir: a copy of itself that is the next standby. So there is a standby at once: a program that
starts takes a second, and memory that may not be there.

The first server opens the backing and the disks of clean exports, and sends them: those after it
are given them as they begin, whatever has become of their names. They stay locked, too: nobody else
takes them while there is no server.

An heir is no child of the keeper's, but its grandchild; it becomes one when the server dies (the
keeper is a subreaper). Everything goes by pidfd, which does not care.
"""

import contextlib
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

from zcache.keeper.channel import BEGIN, BEGIN_ALONE, FILES, MAX_FILES, READY
from zcache.linux import process
from zcache.steps import STEP_SECONDS, StepsWatch

#: What becomes the server. Not scripts/serve: that looks at the set-up first, which takes memory
#: and time.
SERVE: Final = (sys.executable, "-I", "-m", "nbd_plugin.serve")
#: What says whether it would take its parameters.
TRY_PARAMETERS: Final = (sys.executable, "-I", "-m", "zcache.server.config")

#: The first descriptor after stderr is where sd_listen_fds(3) says that the socket is.
LISTEN_DESCRIPTOR: Final = 3

#: How long a server may take to end when it is told to.
END_SECONDS: Final = 30.0


class ServerProcess:
    """One server, from its start to its end."""

    def __init__(self, pid: int, channel: socket.socket, steps: StepsWatch | None = None) -> None:
        """`steps` is where its start is, if that is watched; its heir goes on with them."""
        self.pid = pid
        self.steps = steps
        self.pidfd = os.pidfd_open(pid)
        self.channel = channel
        self.channel.setblocking(False)
        self.is_heir = False  # of the server's code for sure, whatever is on disk by now
        self.began_seconds = time.monotonic()
        self.has_said_ready = False
        self._heir: ServerProcess | None = None
        self._files: list[int] = []

    @classmethod
    def start(
        cls, parameters: Sequence[str], image: int, errors: int, step_seconds: float = STEP_SECONDS
    ) -> "ServerProcess":
        """A new program, a standby; `errors` is the descriptor that it writes its messages to,
        `step_seconds` what a step of its start may take."""
        ours, theirs = socket.socketpair()
        words = [*parameters, f"image={image}", f"standby={theirs.fileno()}"]
        program = None
        steps = StepsWatch(step_seconds=step_seconds)
        try:
            with theirs, os.fdopen(steps.writer, "wb"):
                program = subprocess.Popen(
                    [*SERVE, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=(LISTEN_DESCRIPTOR, image, theirs.fileno(), steps.writer),
                    env={**os.environ, **steps.pass_on(), "LISTEN_FDS": "1"},
                )
            program.returncode = 0  # it is waited for here, by its pidfd
            return cls(program.pid, ours, steps)
        except BaseException:
            ours.close()
            steps.close()
            if program:  # nobody would know it
                os.kill(program.pid, signal.SIGKILL)
                os.waitpid(program.pid, 0)
            raise

    def is_ready(self) -> bool:
        """Whether a standby waits for `begin`."""
        if not self.has_said_ready:
            try:
                self.has_said_ready = self.channel.recv(1) == READY
            except OSError:
                return False
        return self.has_said_ready

    def age_seconds(self) -> float:
        """Since it was started, or handed over."""
        return time.monotonic() - self.began_seconds

    def begin(self, files: Sequence[int], leaves_heir: bool = True) -> None:
        """Serve, now or once it is ready: the first, or in the place of one that has ended, with
        its files. An heir takes memory that there may not be."""
        word = BEGIN if leaves_heir else BEGIN_ALONE
        if self.steps:
            self.steps.begin_anew("beginning to serve")
        with contextlib.suppress(OSError):  # it has ended: that will be seen
            socket.send_fds(self.channel, [word], files)

    def heir(self) -> "ServerProcess | None":
        """The next standby, once after `begin`."""
        self._receive()
        heir, self._heir = self._heir, None
        return heir

    def files(self) -> list[int]:
        """The descriptors that the first server has opened, once after `begin`."""
        self._receive()
        files, self._files = self._files, []
        return files

    def _receive(self) -> None:
        if not self.is_ready():  # it says that first
            return
        while True:
            try:
                word, descriptors, _, _ = socket.recv_fds(self.channel, 16, MAX_FILES)
            except OSError:
                return
            if not descriptors:
                return
            if word == FILES:
                self._files = descriptors
            else:
                self._heir = self._heir_of(int(word), socket.socket(fileno=descriptors[0]))

    def _heir_of(self, pid: int, channel: socket.socket) -> "ServerProcess | None":
        """None if it has ended, and its pid is nobody's now, or somebody else's."""
        try:
            heir = ServerProcess(pid, channel)
        except OSError as error:
            channel.close()  # which ends one that lives
            if isinstance(error, ProcessLookupError):
                return None
            raise
        if process.parent(pid) not in (self.pid, os.getpid()):
            heir.close()
            return None
        heir.is_heir = True
        heir.steps = self.steps and self.steps.share()
        return heir

    def has_ended(self) -> bool:
        return self.wait(0)

    def stands_still(self) -> str:
        """At which step of its start, if it has been there for too long; else "". Not told by one
        whose start is not watched."""
        if self.steps is None:
            return ""
        self.steps.look()
        if self.has_said_ready and not self.steps.saying:  # older code
            return ""
        return self.steps.step if self.steps.is_overdue() else ""

    def exit_status(self) -> int | None:
        """Of one that has ended and is our child: as `subprocess` has it, minus the signal's
        number."""
        try:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def status_in_words(self) -> str:
        """What follows "it ended": nothing if whose child it is has collected it (an heir's)."""
        status = self.exit_status()
        return "" if status is None else f" with status {status}"

    def kill(self) -> None:
        """One that may hang; it is not waited for."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def discard(self) -> None:
        """A standby that is not wanted any more."""
        self.kill()
        self.wait(END_SECONDS)
        self.close()

    def end(self) -> None:
        """By SIGTERM, and by SIGKILL if that does not help."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
        if not self.wait(END_SECONDS):
            self.kill()
            self.wait(END_SECONDS)

    def close(self) -> None:
        """When it has ended."""
        self.exit_status()
        self.channel.close()
        if self.steps:
            self.steps.close()
        os.close(self.pidfd)

    def wait(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


def listen(path: Path) -> Path:
    """Listen on `path` (mode 0600) at the descriptor that servers inherit. Returns a name under
    which it can be connected to whatever becomes of `path`: that may be another swap's by then."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    listener.bind(str(path))
    os.umask(mask)
    listener.listen()
    if listener.fileno() != LISTEN_DESCRIPTOR:
        os.dup2(listener.fileno(), LISTEN_DESCRIPTOR)
        listener.close()
    else:
        listener.detach()
    return Path(f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_CLOEXEC)}")
