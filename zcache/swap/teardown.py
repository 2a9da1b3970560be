"""What swap-down does to the machine, one method a step; `take_down` (down.py) has their order.

Like swap-down it imports only what swapping off needs, and the rest late: see there.
"""

import os
import time
from collections.abc import Callable

from zcache.errors import EnvironmentProblem
from zcache.image import image
from zcache.image.signs import Signs
from zcache.keeper.netlink_message import NetlinkSocket
from zcache.keeper.state import Backing, StateFolder, SwapState
from zcache.linux import cgroup, process
from zcache.linux.proc_swaps import ProcSwaps
from zcache.swap import backing, room, swapoff, sysctls
from zcache.swap.nbd_device import NbdDevice

# The server may have a whole pool to unlock and unmap.
TERM_SECONDS = 60.0
DETACH_SECONDS = 30.0
Report = Callable[[str], None]


class Teardown:
    """One swap area on its way down; the fake of the unit tests has the same methods."""

    def __init__(self, report: Report, interval_seconds: float = 5.0) -> None:
        self._report = report
        self._interval_seconds = interval_seconds
        self._swaps = ProcSwaps()
        self._is_given_up = False

    def is_swapping(self, device: str) -> bool:
        return self._swaps.find(device) is not None

    def swap_off(self, device: str, look: Callable[[], None] = lambda: None) -> None:
        """`look` is called now and then."""

        def progress() -> None:
            look()
            entry = self._swaps.find(device)
            if entry is not None:
                self._report(f"{device}: {entry.used_kib} KiB still out")

        progress()
        reported_mib = 0
        while not self._is_given_up and (short_kib := room.shortage_kib(device, self._swaps.entries())):
            short_mib = (short_kib + 1023) // 1024
            if short_mib != reported_mib:
                self._report(f"{device}: waiting for {short_mib} MiB more memory to take its pages back: end programs")
                reported_mib = short_mib
            time.sleep(self._interval_seconds)
            look()
        swapoff.swap_off(device, progress, self._interval_seconds)

    def put_back_sysctls(self, folder: StateFolder, may_be_lent: bool = False) -> None:
        for failure in sysctls.release(folder.state, may_be_lent=may_be_lent):
            self._report(f"warning: {failure}")

    def release_network_programs(self, folder: StateFolder) -> None:
        from zcache.swap import network_programs  # late: hardly ever needed

        for failure in network_programs.release(folder.state):
            self._report(f"warning: {failure}")

    def thaw(self, folder: StateFolder) -> None:
        """What was frozen for a suspend, and not thawed since."""
        from zcache.keeper import frozen  # late: hardly ever needed
        from zcache.swap import control_groups  # late: hardly ever needed

        found = frozen.read(folder.frozen)
        if found:
            frozen.thaw(found[1])
            root = control_groups.version_2()
            if root:
                control_groups.unpark(root)

    def unguard_sleep(self) -> None:
        from zcache.swap import sleep_units  # late: it loads subprocess

        sleep_units.unguard()

    def device_of(self, attached_by_pid: int) -> str | None:
        return NbdDevice.attached_by(attached_by_pid)

    def attached_by_pid(self, device: str) -> int | None:
        return NbdDevice(device).attached_by_pid()

    def detach(self, device: str) -> None:
        NbdDevice(device).detach(DETACH_SECONDS)

    def is_running(self, server: process.ProcessIdentity) -> bool:
        return process.is_running(server)

    def server_of(self, keeper: process.ProcessIdentity, folder: StateFolder) -> process.ProcessIdentity | None:
        """One that is left: servers are in the session of the keeper that started them, be it dead
        by now."""
        return next(process.in_session(keeper.pid, f"control={folder.control}"), None)

    def is_connected(self, server: process.ProcessIdentity) -> bool:
        """Whether the device is, as the image says. One that has none any more has ended: that will
        be seen."""
        try:
            descriptor = image.of_process(server.pid)
        except (EnvironmentProblem, FileNotFoundError, ProcessLookupError):
            return True
        try:
            return Signs(descriptor).connections > 0
        finally:
            os.close(descriptor)

    def reconnect(self, keeper: process.ProcessIdentity, folder: StateFolder) -> None:
        """Do what the keeper was about to do."""
        from zcache.keeper.reconnection import Reconnection  # late: it loads libnbd

        def is_worth_waiting() -> bool:
            return self.server_of(keeper, folder) is not None

        Reconnection(folder.reconnection.read_bytes(), folder.socket).connect(is_worth_waiting)

    def fail_requests(self, folder: StateFolder) -> None:
        """For a device that nobody will serve again: what is under way, or comes, fails at once."""
        netlink = NetlinkSocket()
        try:
            netlink.send(folder.disconnection.read_bytes())
        finally:
            netlink.close()
        self._is_given_up = True  # what is lost needs no memory

    def stop_server(self, keeper: process.ProcessIdentity, folder: StateFolder) -> str:
        """By its keeper; and if that has gone before it, by itself. Their control group goes with
        them."""
        outcome = process.stop(keeper, TERM_SECONDS)
        for server in process.in_session(keeper.pid, f"control={folder.control}"):
            outcome = process.stop(server, TERM_SECONDS)
        cgroup.remove(folder.cgroup)
        return outcome

    def remove_backing(self, below: Backing) -> str:
        """What became of it; its server has ended."""
        return backing.remove(below)

    def close(self) -> None:
        self._swaps.close()


def is_live(state: SwapState, folder: StateFolder, machine: Teardown) -> bool:
    """Whether anything that the state names is still there, or a server without its keeper."""
    if machine.is_running(state.keeper) or our_device(state, machine) is not None:
        return True
    return machine.server_of(state.keeper, folder) is not None


def our_device(state: SwapState, machine: Teardown) -> str | None:
    """The device, if it is attached, and by us rather than by someone who got the same name later.

    It stays attached, by the pid that sysfs shows, for as long as anything is swapped to it, even
    when its server has died. A swap-up that was killed at the wrong moment knew the pid but not yet
    the device.
    """
    if state.attached_by_pid is None:
        return None
    if state.device is None:
        return machine.device_of(state.attached_by_pid)
    return state.device if machine.attached_by_pid(state.device) == state.attached_by_pid else None
