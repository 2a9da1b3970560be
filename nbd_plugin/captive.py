"""A captive server (nbdkit --run COMMAND): nbdkit is then the child, and its parent runs the command and waits.

Both have the listening socket, so a server that ends before it serves leaves a command that connects, and waits for an
answer for ever. And with `-U -` nbdkit removes the socket and its folder at the end, for which it needs leave.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: The folder that nbdkit makes for `-U -` (mkdtemp), and the socket in it.
_FOLDER_PREFIX: Final = "nbdkit"
_SOCKET_NAME: Final = "socket"


def is_captive() -> bool:
    """Whether nbdkit was given --run."""
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return any(word == b"--run" or word.startswith(b"--run=") for word in words)


def turn_clients_away() -> None:
    """Whoever has connected sees the end, and whoever comes is refused, in all processes that have the socket."""
    for listener in _listeners() if is_captive() else ():
        listener.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def temporary_folder() -> Path | None:
    """The one of `-U -`, which goes with the server."""
    for listener in _listeners() if is_captive() else ():
        name = listener.getsockname()
        if listener.family == socket.AF_UNIX and isinstance(name, str):
            path = Path(name)
            if path.name == _SOCKET_NAME and path.parent.name.startswith(_FOLDER_PREFIX):
                return path.parent
    return None


def _listeners() -> Iterator[socket.socket]:
    """Of this process, as descriptors of our own."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # gone
            if not stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as found:
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    yield found
