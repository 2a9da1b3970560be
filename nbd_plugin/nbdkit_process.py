"""What nbdkit does not tell its plugins of the process that they share: its options, and its
sockets."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from nbd_plugin.nbdkit_options import arguments_of
from zcache.server.front_end import KeyFile


def has_option(name: str) -> bool:
    """Whether nbdkit was given `name`, or `name=…`."""
    return any(word == name or word.startswith(f"{name}=") for word in _words())


def psk_file() -> KeyFile | None:
    """The file of pre-shared keys, if there is one: GnuTLS opens it at each handshake, by the path
    that it had."""
    paths = arguments_of(_words(), "--tls-psk")
    return KeyFile("--tls-psk", Path(paths[-1]).resolve()) if paths else None


def _words() -> list[str]:
    return os.fsdecode(Path("/proc/self/cmdline").read_bytes()).split("\0")


def listeners() -> Iterator[socket.socket]:
    """The sockets that clients connect to, as descriptors of our own."""
    return _sockets(is_listening=True)


def connections() -> Iterator[socket.socket]:
    """The connected sockets, as descriptors of our own."""
    return _sockets(is_listening=False)


def _sockets(*, is_listening: bool) -> Iterator[socket.socket]:
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # gone
            if not stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as found:
                if bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) is is_listening:
                    yield found
