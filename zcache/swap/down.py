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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zcache.errors import StillSwappingError, SwapError
from zcache.inherited import start
from zcache.keeper.state import DEFAULT_FOLDER, StateFolder, SwapState
from zcache.linux import standard_streams
from zcache.linux.proc_swaps import ProcSwaps
from zcache.swap import swapoff
from zcache.swap.interruption import Interrupted, Interruption
from zcache.swap.survivors import Survivors
from zcache.swap.teardown import Report, Teardown, our_device


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
    machine.release_network_programs(folder)
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


USAGE: Final = """usage: swap-down [STATE-FOLDER]   (default: /run/zcache)

Turn zcache's swap off. Waits until there is memory for all that is out, and says how much is
missing (Ctrl-C: all stays as it is); then takes away the device and the server, and the backing
file if swap-up has made it (unless that was given --keep-backing)."""


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """`swap-down [STATE-FOLDER]`.  Status: 0 all is down, 1 it is not and a line says why, 128+n a
    signal."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print(USAGE)
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
