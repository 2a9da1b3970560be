"""The kernel's `nbd` generic netlink family, in the kernel's own names (linux/nbd-netlink.h).

Three commands: connect, reconfigure, disconnect.  pyroute2 does the protocol; this file only names
its fields. It is imported late on purpose: it costs some 15 MiB, which swap-down must not hold
while it turns the swap off.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from zcache.errors import SwapError
from zcache.swap.nbd_device import OUT_OF_REACH, has_driver

NBD_CMD_CONNECT, NBD_CMD_DISCONNECT, NBD_CMD_RECONFIGURE = 1, 2, 3
_VERSION = 1


class _SockItem(nla):  # type: ignore[misc]  # pyroute2 has no types
    nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))


class _Sockets(nla):  # type: ignore[misc]  # pyroute2 has no types
    nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "item"))
    item = _SockItem


class _NbdMessage(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
    )
    sockets = _Sockets


@dataclass(frozen=True)
class ConnectRequest:
    """What the kernel is told about a device; see `NbdDevice` for why the timeouts are as they
    are."""

    size_bytes: int
    block_size_bytes: int
    server_flags: int
    timeout_seconds: int
    dead_connection_seconds: int


def _socket_attribute(socket_fd: int) -> tuple[str, dict[str, Any]]:
    item = ("NBD_SOCK_ITEM", {"attrs": [("NBD_SOCK_FD", socket_fd)]})
    return ("NBD_ATTR_SOCKETS", {"attrs": [item]})


def connect_attributes(request: ConnectRequest, socket_fd: int) -> list[tuple[str, Any]]:
    """No NBD_ATTR_INDEX: the kernel takes the first free device, and makes a new one when there is
    none.

    The timeout is always sent: a device keeps that of its last use otherwise.  No client flags: the
    swap area's own life decides, so the device must neither go when mkswap closes it nor vanish
    from /dev afterwards.
    """
    return [
        ("NBD_ATTR_SIZE_BYTES", request.size_bytes),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", request.block_size_bytes),
        ("NBD_ATTR_TIMEOUT", request.timeout_seconds),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", request.dead_connection_seconds),
        ("NBD_ATTR_SERVER_FLAGS", request.server_flags),
        ("NBD_ATTR_CLIENT_FLAGS", 0),
        _socket_attribute(socket_fd),
    ]


def connect(request: ConnectRequest, socket_fd: int) -> int:
    """Give the socket to the kernel; the index N of the /dev/nbdN that it chose."""
    for reply in _call(NBD_CMD_CONNECT, connect_attributes(request, socket_fd)):
        index = reply.get_attr("NBD_ATTR_INDEX")
        if index is not None:
            return int(index)
    raise SwapError("the kernel attached the device but did not say which")


def reconfigure_message(index: int, socket_fd: int) -> bytes:
    """What puts a new socket in the place of a dead one, for `NetlinkSocket`.

    What was unanswered is sent again as its timers run out.
    """
    return _encoded(NBD_CMD_RECONFIGURE, [("NBD_ATTR_INDEX", index), _socket_attribute(socket_fd)])


def disconnect_message(index: int) -> bytes:
    """What `disconnect` sends, for `NetlinkSocket`."""
    return _encoded(NBD_CMD_DISCONNECT, [("NBD_ATTR_INDEX", index)])


def _encoded(command: int, attributes: list[tuple[str, Any]]) -> bytes:
    """For a process without pyroute2; it asks for an acknowledgement."""
    with GenericNetlinkSocket() as netlink:
        netlink.bind("nbd", _NbdMessage)
        message = _message(command, attributes)
        message["header"]["type"] = netlink.prid
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
        message["header"]["sequence_number"] = message["header"]["pid"] = 0
        message.encode()
        return bytes(message.data)


def disconnect(index: int) -> None:
    """Detach; requests still under way become I/O errors.  Nothing happens when it is not
    attached."""
    _call(NBD_CMD_DISCONNECT, [("NBD_ATTR_INDEX", index)])


def _message(command: int, attributes: list[tuple[str, Any]]) -> _NbdMessage:
    message = _NbdMessage()
    message["cmd"] = command
    message["version"] = _VERSION
    message["attrs"] = attributes
    return message


def _call(command: int, attributes: list[tuple[str, Any]]) -> Sequence[Any]:
    message = _message(command, attributes)
    try:
        with GenericNetlinkSocket() as netlink:
            netlink.bind("nbd", _NbdMessage)
            replies: Sequence[Any] = netlink.nlm_request(
                message, msg_type=netlink.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK
            )
            return replies
    except NetlinkError as error:
        if error.code == errno.ENOENT:
            if has_driver():  # PID 1 is in this network namespace, too: a container
                raise SwapError(OUT_OF_REACH) from error
            raise SwapError("the kernel has no nbd driver: modprobe nbd must succeed first") from error
        raise SwapError(f"the kernel's nbd driver refused: {os.strerror(error.code)} (see dmesg)") from error
