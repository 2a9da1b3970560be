"""Unix sockets: where a server listens, what it has left behind when it ended, and who is at the
other end. Nothing that is not a socket is ever removed."""

import os
import socket
import struct
from pathlib import Path
from typing import Final

#: struct ucred: process, user, group.
_CREDENTIALS: Final = struct.Struct("=iII")


def listen_for_owner(path: Path, backlog: int) -> socket.socket:
    """A socket that listens there and does not block, for its owner only (mode 0600). Raises
    `OSError`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def peer_pid(connected: socket.socket) -> int:
    """Which process connected; 0 if it is none of this namespace's."""
    said = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(said)[0]
    return pid


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
