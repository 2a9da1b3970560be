"""A ceiling on private memory, for a server in a control group whose memory is limited.

At the group's limit the kernel ends the largest process. A client's request makes the front end
take a buffer of its size (nbdkit: up to 64 MiB for each connection), which is locked, whatever the
group has left. So the limit on private memory (RLIMIT_DATA, getrlimit(2)) is kept a little above
what is in use. What is larger then fails with ENOMEM, and the server goes on.

Not for a server with a keeper: its successor would inherit the limit, and has all its pages if it
is killed.
"""

import contextlib
import resource
from typing import Final

from zcache.hardening.limits import data_bytes
from zcache.linux.group_limits import GroupLimits

#: Of what a group leaves, this is for the kernel's use, such as socket buffers and file cache that
#: is being read. With 10 MiB left a server was killed as it sent a reply.
KEPT_BYTES: Final = 12 << 20
#: However little that is, the server may have this much more: malloc takes 1 MiB at once, and a
#: thread has a stack of 512 KiB. What is not touched costs the group nothing.
LEAST_BYTES: Final = 2 << 20
#: Past this limit nobody is killed, only made to wait.
_HARMLESS: Final = "memory.high"


class Ceiling:
    """Of this process, over what it uses now, by the limits of `groups`; None: no ceiling. For one
    thread."""

    def __init__(self, groups: GroupLimits | None) -> None:
        self._groups = groups
        self._is_set = False

    def follow(self) -> None:
        """Call now and then: what is used, and what is left, has changed. Without a limit there is
        no ceiling."""
        rooms = self._groups.rooms() if self._groups else ()
        left_bytes = min((room.available for room in rooms if not room.name.endswith(_HARMLESS)), default=None)
        used_bytes = data_bytes()
        if not used_bytes or (left_bytes is None and not self._is_set):
            return
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = hard
        if left_bytes is not None:
            wanted = used_bytes + max(left_bytes - KEPT_BYTES, LEAST_BYTES)
            if hard != resource.RLIM_INFINITY:
                wanted = min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # a sandbox that refuses the call
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
            self._is_set = left_bytes is not None
