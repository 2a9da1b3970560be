"""Unix sockets that a server has left behind when it ended. Nothing that is not a socket is ever
removed."""

import socket
from pathlib import Path


def remove_if_dead(path: Path) -> bool:
    """Remove the socket if nobody listens on it; whether somebody does.

    Raises `PermissionError` for a socket of another user's, and other `OSError`s that connecting to
    it or removing it meets. A place that cannot be looked at is for whoever binds there to complain
    of.
    """
    try:
        if not path.is_socket():  # connect(2) says of any other file, too, that nobody listens
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:  # it does, and is busy
            return True
        except FileNotFoundError:
            return False
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return False
    return True
