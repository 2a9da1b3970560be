"""Giving a live /dev/nbdN a new server, when there is no memory to load anything with.

`prepare` has pyroute2 make the netlink message, in a process that has it (swap-up), for a descriptor with a fixed
number; `Reconnection` is what the keeper holds: it shakes hands through libnbd, puts the socket under that number,
sends the message as it is and reads the kernel's answer: a netlink acknowledgement, whose error number is at a fixed
place (struct nlmsgerr in linux/netlink.h).
"""

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import nbd

from zcache.image import DEVICE_EXPORT
from zcache.swap.error import SwapError

#: The socket's descriptor has this number in the message: out of the way of all others, and within any limit on them.
DESCRIPTOR: Final = 100
#: How long a server may take over what it found, or over what was under way when the kernel gave up waiting.
HANDSHAKE_SECONDS: Final = 60.0
STEP_SECONDS: Final = 0.05
ANSWER_SECONDS: Final = 30.0

_NETLINK_GENERIC: Final = 16
_NLMSG_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, pid
_ERROR: Final = struct.Struct("=i")


class ServerNotThereError(SwapError):
    """Nobody listens at the socket, or the server went away in the middle of the handshake."""


def prepare(index: int) -> bytes:
    """The message for /dev/nbd`index`; the kernel's nbd driver must be loaded."""
    from zcache.swap import nbd_netlink  # late: see its header

    return nbd_netlink.reconfigure_message(index, DESCRIPTOR)


class Reconnection:
    """Can be done any number of times. The netlink socket is opened now."""

    def __init__(self, message: bytes, server: Path) -> None:
        self._message = message
        self._server = str(server)
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        self._netlink.bind((0, 0))
        self._netlink.settimeout(ANSWER_SECONDS)

    def connect(self, is_worth_waiting: Callable[[], bool]) -> None:
        """Put a new connection to the server behind the device; raises `SwapError`.

        `is_worth_waiting` is called many times a second.
        """
        handle = self._shake_hands(is_worth_waiting)
        os.dup2(handle.aio_get_fd(), DESCRIPTOR, inheritable=False)
        try:
            self._netlink.send(self._message)
            answer = self._netlink.recv(4096)
        except OSError as error:
            raise SwapError(f"the kernel's nbd driver does not answer: {error}") from None
        finally:
            os.close(DESCRIPTOR)  # the kernel has its own, and so has the handle until it goes
        _, kind, _, _, _ = _HEADER.unpack_from(answer)
        (error_number,) = _ERROR.unpack_from(answer, _HEADER.size)
        if kind != _NLMSG_ERROR or error_number:
            raise SwapError(f"the kernel did not take the new connection: {os.strerror(-error_number)}")

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
