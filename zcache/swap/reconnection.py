"""Giving a live /dev/nbdN a new server, when there is no memory to load anything with.

`prepare` has pyroute2 make the netlink message, in a process that has it (swap-up), for descriptors with fixed numbers;
`Reconnection` is what the keeper holds: it shakes hands through libnbd, puts the sockets under those numbers, sends the
message as it is and reads the kernel's answer: a netlink acknowledgement, whose error number is at a fixed place
(struct nlmsgerr in linux/netlink.h).
"""

import os
import socket
import struct
from pathlib import Path
from typing import Final

import nbd

from zcache.swap.error import SwapError

#: The sockets' descriptors have these numbers in the message: out of the way of all others.
FIRST_DESCRIPTOR: Final = 900
MAX_CONNECTIONS: Final = 16
ANSWER_SECONDS: Final = 30.0

_NETLINK_GENERIC: Final = 16
_NLMSG_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, pid
_ERROR: Final = struct.Struct("=i")


def prepare(index: int, connection_count: int) -> bytes:
    """The message for /dev/nbd`index`; the kernel's nbd driver must be loaded."""
    from zcache.swap import nbd_netlink  # late: see its header

    return nbd_netlink.reconfigure_message(index, range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + connection_count))


class Reconnection:
    """Can be done any number of times. The netlink socket is opened now."""

    def __init__(self, message: bytes, server: Path) -> None:
        self._message = message
        self._server = str(server)
        self._count = sum(
            message.count(struct.pack("=HHI", 8, 1, FIRST_DESCRIPTOR + number)) for number in range(MAX_CONNECTIONS)
        )
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        self._netlink.bind((0, 0))
        self._netlink.settimeout(ANSWER_SECONDS)

    def connect(self) -> None:
        """Put new connections to the server behind the device; raises `SwapError`."""
        descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + self._count)
        try:
            for descriptor in descriptors:
                handle = nbd.NBD()
                handle.set_request_structured_replies(False)
                handle.connect_unix(self._server)
                os.dup2(handle.aio_get_fd(), descriptor, inheritable=False)
                del handle
            self._netlink.send(self._message)
            answer = self._netlink.recv(4096)
        except (nbd.Error, OSError) as error:
            raise SwapError(f"reconnecting failed: {error}") from None
        finally:
            for descriptor in descriptors:
                try:
                    os.close(descriptor)
                except OSError:
                    continue  # was not reached
        _, kind, _, _, _ = _HEADER.unpack_from(answer)
        (error_number,) = _ERROR.unpack_from(answer, _HEADER.size)
        if kind != _NLMSG_ERROR or error_number:
            raise SwapError(f"the kernel did not take the new connection: {os.strerror(-error_number)}")
