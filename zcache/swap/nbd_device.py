"""/dev/nbdN: attached to a server's connections, watched through sysfs, warmed up, detached.

The timeouts, after drivers/block/nbd.c of Linux 6.1, and why they are what they are:

  * A request's timeout (NBD_ATTR_TIMEOUT) is 0.  With any other the kernel takes a late answer for
    a dead connection; a disk below that hangs (and neither fails nor ends) would first cost the
    connection, which cannot be had again while the request is under way, and then, after the dead
    connection's timeout, every page.  With 0 the kernel waits for as long as the server lives, as
    it does for a disk of its own.  (A server that hangs is the keeper's affair: it is killed, and
    with it the connection.)
  * The queue's timeout (queue/io_timeout in sysfs; the driver sets 30 s).  When it runs out, the
    kernel looks whether the request's connection has been replaced since, and if so sends it again
    on the new one.  So this is how long a page that a dead server had not answered waits for
    nothing, and it is short; if the connection is the same, there is a line in the kernel's log
    ("Possible stuck request") and the timer starts again.
  * The dead connection's timeout (NBD_ATTR_DEAD_CONN_TIMEOUT).  With no live connection, requests
    wait this long for a new one before they fail.  Zero would turn the death of the server into I/O
    errors in that instant.

One connection: with two, the kernel sends a late request again on the other one while the server
may still be at work on the first, which could then overwrite what came after it.

Queue settings are left as the driver has them, which is what swap wants: not rotational (so the
kernel allocates swap slots by clusters), no seek penalty, requests of 128 KiB at most.
"""

import contextlib
import mmap
import os
import time
from pathlib import Path

from zcache.errors import SwapError
from zcache.image.signs import DEVICE_EXPORT
from zcache.pages.entry import PAGE_BYTES

# The device's page, whatever the kernel's is: a kernel with larger pages sends larger requests.
BLOCK_SIZE_BYTES = PAGE_BYTES
# A healthy server answers within 0.4 s.  What was under way at a server's death waits for as long
# as this.
RESEND_SECONDS = 5
# Time for the keeper to replace the server, however long a new one takes to start.  Not measured.
DEAD_CONNECTION_SECONDS = 300


def has_driver(devices: Path = Path("/proc/devices")) -> bool:
    """Whether the kernel has the nbd driver now, built in or loaded; what is not known it has
    not."""
    try:
        block_devices = devices.read_text().partition("Block devices:")[2]
    except OSError:
        return False
    return any(line.split()[1:] == ["nbd"] for line in block_devices.splitlines())


#: Its netlink family, by which alone a device is attached, is there in the first network namespace
#: only.
OUT_OF_REACH = (
    "this network namespace is not the machine's first one, from which alone the kernel's nbd driver can be reached: "
    "run it outside (nsenter --net=/proc/1/ns/net …; a unit without PrivateNetwork=)"
)


def is_in_another_network(proc: Path = Path("/proc")) -> bool:
    """Whether this process's network is not that of PID 1. False where that cannot be seen."""
    try:
        return not os.path.samestat(*((proc / pid / "ns/net").stat() for pid in ("self", "1")))
    except OSError:
        return False


class NbdDevice:
    """A /dev/nbdN, by its path."""

    def __init__(self, path: str, sysfs: Path = Path("/sys/block")) -> None:
        self.path = path
        self.index = int(path.removeprefix("/dev/nbd"))
        self._sysfs = sysfs / f"nbd{self.index}"

    @classmethod
    def of_index(cls, index: int) -> "NbdDevice":
        return cls(f"/dev/nbd{index}")

    @classmethod
    def attached_by(cls, pid: int, sysfs: Path = Path("/sys/block")) -> str | None:
        """The device that a process attached."""
        for entry in sysfs.glob("nbd*"):
            device = cls(f"/dev/{entry.name}", sysfs)
            if device.attached_by_pid() == pid:
                return device.path
        return None

    def attached_by_pid(self) -> int | None:
        """Who attached it; None when it is not attached."""
        return self._read("pid")

    def size_bytes(self) -> int:
        return (self._read("size") or 0) * 512

    def resend_after(self, seconds: int) -> None:
        """How long an unanswered request waits until it is sent again on a new connection, if there
        is one by then; 0: as the driver has it."""
        if seconds:
            with contextlib.suppress(OSError):  # sysfs cannot be written to (a container): 30 s, then
                (self._sysfs / "queue/io_timeout").write_text(str(seconds * 1000))

    def _read(self, name: str) -> int | None:
        try:
            return int((self._sysfs / name).read_text())
        except FileNotFoundError:
            return None
        except OSError as error:  # whatever that means, it does not mean that nothing is attached
            raise SwapError(f"{self._sysfs / name} cannot be read: {error.strerror}") from error

    def detach(self, timeout_seconds: float) -> None:
        """Disconnect and wait until the kernel has let go.  The caller vouches that no swap is on
        it."""
        from zcache.swap import nbd_netlink  # late: see its header

        pid = self.attached_by_pid()
        nbd_netlink.disconnect(self.index)
        self.wait_until_detached(pid, timeout_seconds)

    def wait_until_detached(self, pid: int | None, timeout_seconds: float) -> None:
        """The last opener (udev looks at each new device) may hold it a moment longer; and as soon
        as it is free, somebody else may attach it."""
        deadline_seconds = time.monotonic() + timeout_seconds
        while True:
            now = self.attached_by_pid()
            if now != pid if now else not self.size_bytes():
                return
            if time.monotonic() > deadline_seconds:
                raise SwapError(f"{self.path} is still attached after {timeout_seconds:.0f} s: who holds it?")
            time.sleep(0.05)

    def warm_up(self) -> None:
        """Read the first page, past the page cache.

        A server's thread that serves its first request while memory is already short makes its
        Python thread state and populates its stack at the worst moment, and waits for memory that
        only it can free.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            raise SwapError(f"opening {self.path} failed: {error.strerror}") from error
        try:
            # O_DIRECT wants an aligned buffer, and an anonymous mapping is one.
            with mmap.mmap(-1, BLOCK_SIZE_BYTES) as buffer:
                os.preadv(fd, [buffer], 0)
        except OSError as error:
            raise SwapError(f"reading {self.path} failed: {error.strerror}; see dmesg") from error
        finally:
            os.close(fd)


def attach(
    socket: Path,
    discard: bool,
    resend_seconds: int,
    dead_connection_seconds: int = DEAD_CONNECTION_SECONDS,
    name: str = DEVICE_EXPORT,
) -> NbdDevice:
    """Shake hands with the server behind the socket and give the connection to the kernel."""
    from zcache.swap import handshake, nbd_netlink  # late: see nbd_netlink's header

    with handshake.connection(socket, name) as (export, socket_fd):
        export.check(discard)
        request = nbd_netlink.ConnectRequest(
            # The kernel would round down by itself, but only in what it shows.
            size_bytes=export.size_bytes // BLOCK_SIZE_BYTES * BLOCK_SIZE_BYTES,
            block_size_bytes=BLOCK_SIZE_BYTES,
            server_flags=export.flags,
            timeout_seconds=0,
            dead_connection_seconds=dead_connection_seconds,
        )
        device = NbdDevice.of_index(nbd_netlink.connect(request, socket_fd))
        device.resend_after(resend_seconds)
        return device
