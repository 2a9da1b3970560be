"""A captive server (nbdkit --run COMMAND): nbdkit is then the child, and its parent runs the
command and waits.

Both have the listening socket, so a server that ends before it serves leaves a command that
connects, and waits for an answer for ever. And with `-U -` nbdkit removes the socket and its folder
at the end, for which it needs leave.
"""

import contextlib
import socket
from pathlib import Path
from typing import Final

from nbd_plugin.nbdkit_process import has_option, listeners

#: The folder that nbdkit makes for `-U -` (mkdtemp), and the socket in it.
_FOLDER_PREFIX: Final = "nbdkit"
_SOCKET_NAME: Final = "socket"


def turn_clients_away() -> None:
    """Whoever has connected sees the end, and whoever comes is refused, in all processes that have
    the socket."""
    for listener in listeners() if has_option("--run") else ():
        listener.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def temporary_folder() -> Path | None:
    """The one of `-U -`, which goes with the server."""
    for listener in listeners() if has_option("--run") else ():
        name = listener.getsockname()
        if listener.family == socket.AF_UNIX and isinstance(name, str):
            path = Path(name)
            if path.name == _SOCKET_NAME and path.parent.name.startswith(_FOLDER_PREFIX):
                return path.parent
    return None
