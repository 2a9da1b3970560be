"""A message to the kernel that was made beforehand, by a process that had pyroute2 (some 15 MiB),
and is sent as it is by one that has no memory to spare.

The kernel's answer is an acknowledgement, whose error number is at a fixed place (struct nlmsgerr
in linux/netlink.h).
"""

import os
import socket
import struct
from typing import Final

from zcache.errors import SwapError

ANSWER_SECONDS: Final = 30.0

_NETLINK_GENERIC: Final = 16
_NLMSG_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, pid
_ERROR: Final = struct.Struct("=i")


class NetlinkSocket:
    """Opened now; sends any number of messages."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        self._socket.bind((0, 0))
        self._socket.settimeout(ANSWER_SECONDS)

    def send(self, message: bytes) -> None:
        """Raises `SwapError` if the kernel refuses, or does not answer."""
        try:
            self._socket.send(message)
            answer = self._socket.recv(4096)
        except OSError as error:
            raise SwapError(f"the kernel's nbd driver does not answer: {error}") from None
        _, kind, _, _, _ = _HEADER.unpack_from(answer)
        (error_number,) = _ERROR.unpack_from(answer, _HEADER.size)
        if kind != _NLMSG_ERROR or error_number:
            raise SwapError(f"the kernel's nbd driver refused: {os.strerror(-error_number)}")

    def close(self) -> None:
        self._socket.close()
