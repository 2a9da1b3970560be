"""A server as its keeper sees it: a child process that begins to serve when it is told to.

It inherits three descriptors: the socket to listen on (systemd's protocol, sd_listen_fds(3), which nbdkit speaks: so
the socket stays where it is when servers come and go), the image, and a socket on which a standby says that it is
ready and is told to begin.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

#: What becomes the server. Not scripts/serve: that looks at the set-up first, which takes memory and time.
SERVE: Final = (sys.executable, "-P", "-m", "nbd_plugin.serve")

#: The first descriptor after stderr is where sd_listen_fds(3) says that the socket is.
LISTEN_DESCRIPTOR: Final = 3

#: How long a server may take to end when it is told to.
END_SECONDS: Final = 30.0


class ServerProcess:
    """One server, from its start to its end. `errors` is the descriptor that it writes its messages to."""

    def __init__(self, parameters: Sequence[str], image: int, errors: int, *, is_standby: bool) -> None:
        ours, theirs = socket.socketpair()
        words = [*parameters, f"image={image}", *([f"standby={theirs.fileno()}"] if is_standby else [])]
        with theirs:
            self._process = subprocess.Popen(
                [*SERVE, *words],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(LISTEN_DESCRIPTOR, image, theirs.fileno()),
                env={**os.environ, "LISTEN_FDS": "1"},
            )
        self._channel = ours
        self._channel.setblocking(False)
        self.pidfd = os.pidfd_open(self._process.pid)
        self._is_ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_ready(self) -> bool:
        """Whether a standby waits for `begin`."""
        if not self._is_ready:
            try:
                self._is_ready = bool(self._channel.recv(16))
            except OSError:
                return False
        return self._is_ready

    def begin(self) -> None:
        """Take the place of the server that has ended."""
        self._channel.send(b"!")

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def exit_status(self) -> int | None:
        return self._process.returncode

    def kill(self) -> None:
        """One that may hang; it is not waited for."""
        self._process.kill()

    def discard(self) -> None:
        """A standby that is not wanted any more."""
        self._process.kill()
        self._process.wait()
        self.close()

    def end(self) -> None:
        """By SIGTERM, and by SIGKILL if that does not help."""
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """When it has ended."""
        self._channel.close()
        os.close(self.pidfd)
