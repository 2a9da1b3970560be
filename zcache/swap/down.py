"""swap-down: swap area, device, server, in that order, each only once the one before it is
certainly gone.

The swap goes off when there is memory for what is in it, and not before: room.py says why.

The server is what the kernel's pages live in.  So it is not signalled before /proc/swaps no longer
names its device and sysfs no longer shows the device attached; until then any failure leaves
everything running, says so, and can be tried again.  That also makes it idempotent: what is already
gone is passed over, and with nothing up at all it says so and succeeds.

It runs when memory is short.  Until the swap is off it imports only what swapping off needs (no
pyroute2, no subprocess), locks its memory, and forks once (why: swapoff.py).
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zcache.errors import EnvironmentProblem, StillSwappingError, SwapError
from zcache.inherited import start
from zcache.keeper.netlink_message import NetlinkSocket
from zcache.keeper.state import DEFAULT_FOLDER, Backing, StateFolder, SwapState
from zcache.linux import cgroup, process, standard_streams
from zcache.linux.proc_swaps import ProcSwaps
from zcache.swap import backing, room, swapoff, sysctls
from zcache.swap.interruption import Interrupted, Interruption
from zcache.swap.nbd_device import NbdDevice
from zcache.swap.survivors import Survivors

# The server may have a whole pool to unlock and unmap.
TERM_SECONDS = 60.0
DETACH_SECONDS = 30.0
Report = Callable[[str], None]


class Teardown:
    """What take_down does to the machine, one method a step; the fake of the unit tests has the
    same ones."""

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
        from zcache.image import image  # late: hardly ever needed

        try:
            descriptor = image.of_process(server.pid)
        except (EnvironmentProblem, FileNotFoundError, ProcessLookupError):
            return True
        try:
            return image.Signs(descriptor).connections > 0
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


def take_down(state: SwapState, folder: StateFolder, machine: Teardown, report: Report = print) -> str:
    """Everything that the state names goes, or StillSwappingError says why the swap stays on.

    Returns how the server ended: "ended", "killed", or "gone" if it had ended before.
    """
    device = our_device(state, machine)
    if device is not None and machine.is_swapping(device):
        survivors = Survivors(state, device, folder, machine, report)
        survivors.look()
        machine.swap_off(device, survivors.look)
        if machine.is_swapping(device):
            raise StillSwappingError(f"swapoff reported success, but {device} is still in /proc/swaps")
        report(f"{device}: swap is off")
    machine.thaw(folder)
    folder.disarm_keeper()
    if device is not None and our_device(state, machine) == device:  # it is not ours any more once its requests failed
        machine.detach(device)
        report(f"{device}: detached")
    is_kept = machine.is_running(state.keeper)
    outcome = machine.stop_server(state.keeper, folder)
    if outcome == "stuck":
        raise SwapError(f"the keeper (pid {state.keeper.pid}) does not end, not even by SIGKILL; see dmesg")
    # After the keeper, which takes back what it has lent to a server (`reserve.py`), unless it is
    # killed.
    machine.put_back_sysctls(folder, may_be_lent=not is_kept or outcome == "killed")
    machine.unguard_sleep()
    report(f"keeper (pid {state.keeper.pid}): {outcome}")
    if state.backing:
        report(machine.remove_backing(state.backing))
    folder.remove()
    return outcome


def report_nothing(report: Report) -> None:
    """But there may be a swap whose folder is another one, or was removed."""
    report("nothing is up")
    with contextlib.closing(ProcSwaps()) as swaps:
        for entry in swaps.entries():
            if entry.path.startswith("/dev/nbd"):
                report(f"warning: the kernel swaps to {entry.path}: if it is zcache's, its state folder is another one")


def run(folder: StateFolder, report: Report, interval_seconds: float) -> None:
    if not folder.path.is_dir():
        report_nothing(report)
        return
    look: Callable[[], None] | None = None

    def wait_for_others() -> bool:
        """They may wait for a server that has died, and may not be able to see it: a swapoff whose
        parent was killed."""
        nonlocal look
        if look is None:
            report(f"waiting for another command that is at work in {folder.path}")
            look = _look_of(folder, machine, report)
        look()
        return True

    with contextlib.closing(Teardown(report, interval_seconds)) as machine, folder.locked(wait_for_others):
        state = folder.load()
        if state is None:
            # Only the lock's holder makes one, so nobody is about to.
            folder.refuse_if_used()
            folder.remove_traces()
            report_nothing(report)
            return
        take_down(state, folder, machine, report)


def _look_of(folder: StateFolder, machine: Teardown, report: Report) -> Callable[[], None]:
    """A look at the survivors of a swap that is on; of any other, nothing."""
    state = folder.load()
    device = our_device(state, machine) if state else None
    if state is None or device is None or not machine.is_swapping(device):
        return lambda: None
    return Survivors(state, device, folder, machine, report).look


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """`swap-down [STATE-FOLDER]`.  Status: 0 all is down, 1 it is not and a line says why, 128+n a
    signal."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print("usage: swap-down [STATE-FOLDER]   (turn zcache swap off; default folder /run/zcache)")
        return 0 if list(arguments) in (["-h"], ["--help"]) else 2
    if os.geteuid() != 0:
        print("swap-down: only root can do this", file=sys.stderr)
        return 1

    def report(line: str) -> None:
        standard_streams.say(f"swap-down: {line}")

    path = (Path(arguments[0]) if arguments else DEFAULT_FOLDER).resolve()  # as swap-up names it
    try:
        with Interruption():
            if not swapoff.lock_memory():
                report("warning: memory cannot be locked, so this may be slow when memory is short")
            folder = StateFolder(path)
            if arguments and not folder.path.is_dir():
                raise SwapError(f"{folder.path} is not the state folder of any swap")
            run(folder, report, interval_seconds=1.0 if sys.stdout.isatty() else 5.0)
    except (SwapError, OSError) as error:
        print(f"swap-down: error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(f"swap-down: {interrupted}: not finished; run it again", file=sys.stderr)
        return interrupted.exit_status
    return 0


def command() -> int:
    """`main`, for the whole of a process."""
    return start.run("swap-down", main)


if __name__ == "__main__":
    sys.exit(command())
