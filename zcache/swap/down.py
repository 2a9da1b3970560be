"""swap-down: swap area, device, server, in that order, each only once the one before it is certainly gone.

The swap goes off when there is memory for what is in it, and not before: room.py says why.

The server is what the kernel's pages live in.  So it is not signalled before /proc/swaps no longer names
its device and sysfs no longer shows the device attached; until then any failure leaves everything running,
says so, and can be tried again.  That also makes it idempotent: what is already gone is passed over, and
with nothing up at all it says so and succeeds.

It runs when memory is short.  Until the swap is off it imports only what swapping off needs (no
pyroute2, no subprocess), locks its memory, and forks once (why: swapoff.py).
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zcache.swap import cgroup, process, room, swapoff, sysctls
from zcache.swap.error import StillSwappingError, SwapError
from zcache.swap.interruption import Interrupted, Interruption
from zcache.swap.nbd_device import NbdDevice
from zcache.swap.proc_swaps import ProcSwaps
from zcache.swap.state import DEFAULT_FOLDER, StateFolder, SwapState

# The server may have a whole pool to unlock and unmap.
TERM_SECONDS = 60.0
DETACH_SECONDS = 30.0
Report = Callable[[str], None]


class Teardown:
    """What take_down does to the machine, one method a step; the fake of the unit tests has the same ones."""

    def __init__(self, report: Report, interval_seconds: float = 5.0) -> None:
        self._report = report
        self._interval_seconds = interval_seconds
        self._swaps = ProcSwaps()
        self._is_given_up = False

    def is_swapping(self, device: str) -> bool:
        return self._swaps.find(device) is not None

    def swap_off(self, device: str) -> None:
        def progress() -> None:
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
        swapoff.swap_off(device, progress, self._interval_seconds)

    def put_back_sysctls(self, folder: StateFolder) -> None:
        for failure in sysctls.release(folder.state):
            self._report(f"warning: {failure}")

    def device_of(self, attached_by_pid: int) -> str | None:
        return NbdDevice.attached_by(attached_by_pid)

    def attached_by_pid(self, device: str) -> int | None:
        return NbdDevice(device).attached_by_pid()

    def detach(self, device: str) -> None:
        NbdDevice(device).detach(DETACH_SECONDS)

    def is_running(self, server: process.ProcessIdentity) -> bool:
        return process.is_running(server)

    def has_server(self, keeper: process.ProcessIdentity, folder: StateFolder) -> bool:
        """Servers are in the session of the keeper that started them, be it dead by now."""
        return any(process.in_session(keeper.pid, f"control={folder.control}"))

    def fail_requests(self, device: str) -> None:
        NbdDevice(device).fail_requests()
        self._is_given_up = True  # what is lost needs no memory

    def stop_server(self, keeper: process.ProcessIdentity, folder: StateFolder) -> str:
        """By its keeper; and if that has gone before it, by itself. Their control group goes with them."""
        outcome = process.stop(keeper, TERM_SECONDS)
        for server in process.in_session(keeper.pid, f"control={folder.control}"):
            outcome = process.stop(server, TERM_SECONDS)
        cgroup.remove(folder.cgroup)
        return outcome

    def close(self) -> None:
        self._swaps.close()


def is_live(state: SwapState, machine: Teardown) -> bool:
    """Whether anything that the state names is still there."""
    return machine.is_running(state.keeper) or our_device(state, machine) is not None


def our_device(state: SwapState, machine: Teardown) -> str | None:
    """The device, if it is attached, and by us rather than by someone who got the same name later.

    It stays attached, by the pid that sysfs shows, for as long as anything is swapped to it, even when its server has
    died. A swap-up that was killed at the wrong moment knew the pid but not yet the device.
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
        if not machine.is_running(state.keeper):
            report(f"warning: the keeper (pid {state.keeper.pid}) is gone")
            if not machine.has_server(state.keeper, folder):
                report(f"warning: so is its server, and what was swapped out to {device} is lost")
                machine.fail_requests(device)
        machine.swap_off(device)
        if machine.is_swapping(device):
            raise StillSwappingError(f"swapoff reported success, but {device} is still in /proc/swaps")
        report(f"{device}: swap is off")
    machine.put_back_sysctls(folder)
    folder.disarm_keeper()
    if device is not None:
        machine.detach(device)
        report(f"{device}: detached")
    outcome = machine.stop_server(state.keeper, folder)
    if outcome == "stuck":
        raise SwapError(f"the keeper (pid {state.keeper.pid}) does not end, not even by SIGKILL; see dmesg")
    report(f"keeper (pid {state.keeper.pid}): {outcome}")
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
    waits: list[str] = []

    def wait_for_others() -> bool:
        if not waits:
            waits.append(f"waiting for another command that is at work in {folder.path}")
            report(waits[0])
        return True

    with folder.locked(wait_for_others):
        state = folder.load()
        if state is None:
            # Only the lock's holder makes one, so nobody is about to.
            folder.refuse_if_used()
            folder.remove()
            report_nothing(report)
            return
        machine = Teardown(report, interval_seconds)
        try:
            take_down(state, folder, machine, report)
        finally:
            machine.close()


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """`swap-down [STATE-FOLDER]`.  Status: 0 all is down, 1 it is not and a line says why, 128+n a signal."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print("usage: swap-down [STATE-FOLDER]   (turn zcache swap off; default folder /run/zcache)")
        return 0 if list(arguments) in (["-h"], ["--help"]) else 2
    if os.geteuid() != 0:
        print("swap-down: only root can do this", file=sys.stderr)
        return 1

    def report(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody to read it is no reason to stop half-way
            print(f"swap-down: {line}", flush=True)

    if not swapoff.lock_memory():
        report("warning: memory cannot be locked, so this may be slow when memory is short")
    folder = StateFolder(Path(arguments[0]).resolve() if arguments else DEFAULT_FOLDER)
    if arguments and not folder.path.is_dir():
        print(f"swap-down: error: {folder.path} is not the state folder of any swap", file=sys.stderr)
        return 1
    try:
        with Interruption():
            run(folder, report, interval_seconds=1.0 if sys.stdout and sys.stdout.isatty() else 5.0)
    except (SwapError, OSError) as error:
        print(f"swap-down: error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(f"swap-down: {interrupted}: not finished; run it again", file=sys.stderr)
        return interrupted.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
