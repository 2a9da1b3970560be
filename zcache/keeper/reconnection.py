"""Giving a live /dev/nbdN a new server, when there is no memory to load anything with.

pyroute2 makes the netlink message in a process that has it (swap-up), for a descriptor with a fixed
number; `Reconnection` is what the keeper holds: it shakes hands through libnbd, puts the socket
under that number and sends the message as it is.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import nbd

from zcache.errors import SwapError
from zcache.image.signs import DEVICE_EXPORT
from zcache.keeper.netlink_message import NetlinkSocket

#: The socket's descriptor has this number in the message: out of the way of all others, and within
#: any limit on them.
DESCRIPTOR: Final = 100
#: How long a server may take over what it found, or over what was under way when the kernel gave up
#: waiting.
HANDSHAKE_SECONDS: Final = 60.0
STEP_SECONDS: Final = 0.05


class ServerNotThereError(SwapError):
    """Nobody listens at the socket, or the server went away in the middle of the handshake."""


class Reconnection:
    """Can be done any number of times. The netlink socket is opened now."""

    def __init__(self, message: bytes, server: Path) -> None:
        self._message = message
        self._server = str(server)
        self._netlink = NetlinkSocket()

    def connect(self, is_worth_waiting: Callable[[], bool]) -> None:
        """Put a new connection to the server behind the device; raises `SwapError`.

        The kernel drops it, and says nothing, if it has not seen yet that the old one is dead: the
        server then has none (`signs.Signs`), and whoever wants one tries again. `is_worth_waiting`
        is called many times a second.
        """
        handle = self._shake_hands(is_worth_waiting)
        os.dup2(handle.aio_get_fd(), DESCRIPTOR, inheritable=False)
        try:
            self._netlink.send(self._message)
        except SwapError as error:
            raise SwapError(f"the kernel did not take the new connection: {error}") from None
        finally:
            os.close(DESCRIPTOR)  # the kernel has its own, and so has the handle until it goes

    def _shake_hands(self, is_worth_waiting: Callable[[], bool]) -> "nbd.NBD":
        handle = nbd.NBD()
        handle.set_request_structured_replies(False)
        handle.set_export_name(DEVICE_EXPORT)
        deadline_seconds = time.monotonic() + HANDSHAKE_SECONDS
        try:
            handle.aio_connect_unix(self._server)
            while handle.aio_is_connecting():
                if not is_worth_waiting() or time.monotonic() > deadline_seconds:
                    raise ServerNotThereError("the server does not answer")
                handle.poll(int(STEP_SECONDS * 1000))
        except nbd.Error as error:
            raise ServerNotThereError(f"the handshake failed: {error.string}") from None
        if not handle.aio_is_ready():
            raise ServerNotThereError("the server ended in the middle of the handshake")
        return handle
