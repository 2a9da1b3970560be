"""swap-up: server, device, swap area, in that order, with each step's undo registered as it is
done.

Whatever fails, and wherever Ctrl-C or SIGTERM falls, the undos run in reverse and nothing is left:
no server, no socket, no attached device, no state folder.  One thing outranks that: while
/proc/swaps names the device, or the device stays attached, its server stays, whatever else went
wrong, and swap-down is left to try again.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcache.errors import StillSwappingError, SwapError
from zcache.inherited import start
from zcache.keeper import launch as keeper_process
from zcache.keeper.launch import KeeperProcess
from zcache.keeper.state import DEFAULT_FOLDER, Backing, StateFolder, SwapState
from zcache.linux import cgroup, standard_streams
from zcache.linux.proc_swaps import ProcSwaps
from zcache.linux.process import ProcessIdentity
from zcache.parameters import FOR_PEOPLE, help_text
from zcache.swap import area, backing, nbd_device, neighbours, sleep_units, sysctls
from zcache.swap.apart import apart
from zcache.swap.down import Report, Teardown, is_live, take_down
from zcache.swap.interruption import Hold, Interrupted, Interruption
from zcache.swap.nbd_device import NbdDevice

#: For systemd to forget the scope of a swap that has ended; the next one has another name then.
SCOPE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Options:
    # key=value, as the server takes them.
    parameters: tuple[str, ...] = ()
    priority: int = 100
    discard: bool = False
    timeout_seconds: int = nbd_device.RESEND_SECONDS
    dead_connection_seconds: int = nbd_device.DEAD_CONNECTION_SECONDS
    # It locks and touches its whole pool and tests itself before it answers.
    start_seconds: float = 120.0
    folder: Path = DEFAULT_FOLDER
    # Though swap-up has made it.
    keep_backing: bool = False
    # `zcache sleep` takes the swap off for it.
    may_hibernate: bool = False


class Buildup:
    """What bring_up does to the machine, one method a step; the fake of the unit tests has the same
    ones."""

    def __init__(self, options: Options, folder: StateFolder, report: Report) -> None:
        self._options = options
        self._folder = folder
        self._report = report
        self._keeper: KeeperProcess | None = None
        self._backing: Backing | None = None

    def load_driver(self) -> None:
        """The driver may be built in, and there no module of it, nor a folder of modules: modprobe
        fails then."""
        if nbd_device.is_in_another_network():
            raise SwapError(nbd_device.OUT_OF_REACH)
        if nbd_device.has_driver():
            return
        try:
            area.run(["modprobe", "nbd"])
        except SwapError as error:
            if not nbd_device.has_driver():
                raise SwapError(f"this kernel has no nbd driver, boot one that has ({error})") from None

    def start_server(self, announce: Callable[[ProcessIdentity, Backing | None], None]) -> None:
        """`announce` is told who the keeper will be, and what is below, before it runs."""
        options = self._options

        def announced(keeper: ProcessIdentity) -> None:
            self._backing = backing.make(options.parameters, options.keep_backing)
            announce(keeper, self._backing)

        command = [*self._scope(), *keeper_process.command(self._folder, options.parameters)]
        try:
            self._keeper = KeeperProcess(command, self._folder.log, announced, options.start_seconds)
        except BaseException:
            self._remove_backing()
            raise

    def _scope(self) -> list[str]:
        """What puts the keeper into a group of systemd's, where there is one to be had: tried
        before it is needed."""
        if not cgroup.needs_scope():
            return []
        try:
            area.run([*cgroup.scope(f"{self._folder.cgroup}-trial-{os.getpid()}"), "true"])
        except SwapError as error:
            self._report(
                f"note: systemd gives the keeper no scope ({error}), so it makes a control group itself; systemd may "
                "take that group's limit on swap away, and the keeper puts it back within a second"
            )
            return []
        return cgroup.scope(self._scope_name())

    def _scope_name(self) -> str:
        """One that is free. That of the swap before is until systemd has seen its end, and for as
        long as anything is left in it."""
        name = self._folder.cgroup
        deadline_seconds = time.monotonic() + SCOPE_SECONDS
        while not sleep_units.is_free(cgroup.scope_unit(name)):
            if time.monotonic() > deadline_seconds:
                return f"{name}-{os.getpid()}"
            time.sleep(0.1)
        return name

    def wait_for_server(self) -> None:
        assert self._keeper is not None
        self._keeper.wait_until_ready(self._folder, self._options.start_seconds, self._report)

    def stop_server(self) -> None:
        assert self._keeper is not None
        keeper = self._keeper.identity
        with contextlib.closing(Teardown(self._report)) as teardown:
            if teardown.stop_server(keeper, self._folder) == "stuck":
                raise SwapError(f"the keeper (pid {keeper.pid}) does not end, not even by SIGKILL; see dmesg")
        self._remove_backing()

    def _remove_backing(self) -> None:
        """Of a swap that came to nothing: what we made goes, in any case."""
        if self._backing and self._backing.is_made:
            backing.remove(self._backing, even_if_kept=True)

    def attach(self, announce: Callable[[int], None]) -> str:
        """The device; `announce` is told beforehand the pid that sysfs will show for it while it is
        ours."""
        options = self._options
        seconds = options.timeout_seconds, options.dead_connection_seconds
        pids = []

        def announced(pid: int) -> None:
            pids.append(pid)
            announce(pid)

        try:
            path = apart(lambda: nbd_device.attach(self._folder.socket, options.discard, *seconds).path, announced)
            if NbdDevice(path).attached_by_pid() != pids[-1]:  # by which swap-down knows it
                self.detach(path)
                raise SwapError(f"sysfs shows {path} under another pid: this does not work in a PID namespace")
            return path
        except BaseException:  # it may have been ended between attaching and saying so
            for pid in pids:
                device = NbdDevice.attached_by(pid)
                if device:
                    self.detach(device)
            raise

    def arm_keeper(self, device: str) -> None:
        """Leave it the message by which it can give the device a new server, and wait until it has
        one ready."""
        assert self._keeper is not None
        keeper = self._keeper.identity

        def prepare() -> None:
            from zcache.keeper import reconnection  # late: what they load goes with this process
            from zcache.swap import nbd_netlink  # late: what they load goes with this process

            index = NbdDevice(device).index
            messages = (
                nbd_netlink.reconfigure_message(index, reconnection.DESCRIPTOR),
                nbd_netlink.disconnect_message(index),
            )
            cgroup.join(keeper.pid)
            self._folder.arm_keeper(*messages)

        apart(prepare)
        deadline_seconds = time.monotonic() + self._options.start_seconds
        while not self._folder.armed.exists():
            self._keeper.check_running()
            if time.monotonic() > deadline_seconds:
                raise SwapError(
                    f"no standby is ready after {self._options.start_seconds:.0f} s (--start-seconds); "
                    f"it is at this step: {self._keeper.step()}"
                )
            time.sleep(0.05)

    def detach(self, device: str) -> None:
        self._folder.disarm_keeper()
        apart(lambda: NbdDevice(device).detach(timeout_seconds=10))

    def warm_up(self, device: str) -> None:
        NbdDevice(device).warm_up()

    def make_swap(self, device: str) -> None:
        area.make_swap(device)

    def swap_on(self, device: str) -> None:
        """What the server has said is shown before anything can be swapped; what it says later is
        in its log."""
        assert self._keeper is not None
        for line in self._keeper.log().splitlines():
            self._report(f"server: {line}")
        area.swap_on(device, self._options.priority, self._options.discard)
        with contextlib.closing(ProcSwaps()) as swaps:
            entry = area.verify_on(device, self._options.priority, swaps)
            areas = swaps.entries()
        self._report(f"{device}: swap is on, {entry.size_kib} KiB, priority {entry.priority}")
        for remark in neighbours.remarks(device, entry.priority, areas, neighbours.is_zswap_on()):
            self._report(f"note: {remark}")

    def hold_sysctls(self) -> None:
        assert self._keeper is not None
        keeper = self._keeper.identity

        def hold() -> None:
            cgroup.join(keeper.pid)  # whose memory is never swapped out: the record is that of all areas
            sysctls.hold(self._folder.state)

        apart(hold)

    def put_back_sysctls(self) -> None:
        with contextlib.closing(Teardown(self._report)) as teardown:
            teardown.put_back_sysctls(self._folder)

    def guard_sleep(self) -> None:
        sleep_units.guard(self._report)

    def unguard_sleep(self) -> None:
        sleep_units.unguard()

    def swap_off(self, device: str) -> None:
        with contextlib.closing(Teardown(self._report)) as teardown:
            teardown.swap_off(device)

    def is_swapping(self, device: str) -> bool:
        with contextlib.closing(Teardown(self._report)) as teardown:
            return teardown.is_swapping(device)


def bring_up(
    folder: StateFolder,
    machine: Buildup,
    hold: Hold = contextlib.nullcontext,
    options: Options = Options(),
) -> SwapState:
    """Turn the swap on, or leave nothing behind; the folder exists and is locked.

    `hold` puts off signals while a step and its undo are made one. What of the options others need
    is in the state.
    """
    undo = ExitStack()
    try:
        state = _steps(folder, machine, hold, undo, options)
    except BaseException:
        with hold():
            undo.close()
        raise
    return state


def _first_state(keeper: ProcessIdentity, below: Backing | None, options: Options) -> SwapState:
    return SwapState(keeper, backing=below, may_hibernate=options.may_hibernate, is_discarding=options.discard)


def _steps(folder: StateFolder, machine: Buildup, hold: Hold, undo: ExitStack, options: Options) -> SwapState:
    """Each step's trace in the state comes before it, for whoever finds us killed; its undo after
    it."""
    states: list[SwapState] = []

    def save(state: SwapState) -> None:
        folder.save(state)
        states.append(state)

    undo.callback(folder.remove)
    machine.load_driver()
    with hold():
        machine.start_server(lambda keeper, below: save(_first_state(keeper, below, options)))
        undo.callback(_or_keep, undo, machine.stop_server)
    machine.wait_for_server()
    with hold():
        device = machine.attach(lambda pid: save(states[-1].attached_by(pid)))
        undo.callback(_or_keep, undo, machine.detach, device)
        save(states[-1].with_device(device))
    machine.arm_keeper(device)
    with hold():
        # A descriptor lost to a signal between open and close would keep the device attached
        # (seen).
        machine.warm_up(device)
    machine.make_swap(device)
    with hold():
        undo.callback(machine.unguard_sleep)  # once nobody holds the settings, by which it knows that it is the last
        undo.callback(machine.put_back_sysctls)
        machine.hold_sysctls()
    with hold():
        machine.guard_sleep()
    with hold():
        # Before the step, unlike the others: swapon may fail with the swap on.
        undo.callback(_or_keep, undo, _swap_off_if_on, machine, device)
        machine.swap_on(device)
    undo.pop_all()
    return states[-1]


def _swap_off_if_on(machine: Buildup, device: str) -> None:
    if machine.is_swapping(device):
        machine.swap_off(device)


def _or_keep(undo: ExitStack, step: Callable[..., None], *arguments: object) -> None:
    """An undo that the ones after it depend on: when it fails, they do not run, and the state is
    left to swap-down."""
    try:
        step(*arguments)
    except BaseException as error:  # not only ours: there may be no memory
        undo.pop_all()
        if isinstance(error, StillSwappingError) or not isinstance(error, SwapError):
            raise
        raise SwapError(f"undoing what was done: {error}; run swap-down to try again") from error


def check(options: Options) -> None:
    """What can be said before anything is done."""
    keeper_process.check_parameters(options.parameters)
    if not 0 <= options.priority <= 32767:
        raise SwapError("--priority is 0 to 32767")
    for name, seconds, least in (
        ("--timeout-seconds", options.timeout_seconds, 1),
        ("--dead-server-seconds", options.dead_connection_seconds, 30),  # or an upgrade would cost pages
        ("--start-seconds", options.start_seconds, 1),
    ):
        if not least <= seconds <= 86400:  # which nan is not
            raise SwapError(f"{name} is {least} to 86400")
    if os.geteuid() != 0:
        raise SwapError("only root can do this")
    backing.refuse_unsafe(options.parameters)


def run(options: Options, report: Report = print, hold: Hold = contextlib.nullcontext) -> SwapState:
    """Check, lock, clean up after an earlier life, and bring up."""
    check(options)
    keeper_process.try_parameters(options.parameters)
    folder = StateFolder(options.folder)
    folder.create()
    with folder.locked():
        refuse_if_up(folder, report)
        return bring_up(folder, Buildup(options, folder, report), hold, options)


def refuse_if_up(folder: StateFolder, report: Report) -> None:
    state = folder.load()
    if state is None:
        folder.refuse_if_used()
        folder.clear()
        return
    with contextlib.closing(Teardown(report)) as machine:
        if is_live(state, folder, machine):
            what = state.device or f"a keeper, pid {state.keeper.pid}"
            raise SwapError(f"already up, wholly or in part ({what}): run swap-down first")
    report(f"{folder.path} speaks of things that are gone: cleaning up")
    if state.backing:
        report(backing.remove(state.backing))
    # The folder itself stays: we hold its lock.
    folder.clear()


@contextlib.contextmanager
def swap_area(options: Options, report: Report = print) -> Iterator[SwapState]:
    """Swap for the length of a block, for scripts and tests; its end may raise StillSwappingError,
    or SwapError for a server that ended badly."""
    state = run(options, report)
    folder = StateFolder(options.folder)
    try:
        yield state
    finally:
        with folder.locked(), contextlib.closing(Teardown(report)) as machine:
            # Read again: someone may have replaced the server.
            outcome = take_down(folder.load() or state, folder, machine, report)
    if outcome != "ended":
        raise SwapError(f"the server did not end as it should: {outcome}")


def parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="swap-up",
        description="Turn zcache swap on.  Root only.",
        epilog=f"keys:\n{help_text([key for key in FOR_PEOPLE if key != 'control'])}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option: Callable[..., object] = parser.add_argument
    default = Options()
    option("parameters", nargs="*", metavar="key=value", help="for the server, as scripts/serve takes them")
    option("--priority", type=int, default=default.priority, help="0 to 32767 (%(default)s)")
    option("--discard", action="store_true", help="tell the server of freed clusters (a trim each)")
    option(
        "--hibernate",
        action="store_true",
        help="take the swap off when systemd hibernates the machine, and turn it on again (without, that is refused)",
    )
    option(
        "--timeout-seconds",
        type=int,
        default=default.timeout_seconds,
        help="until an unanswered request is sent again on a new connection (%(default)s)",
    )
    option(
        "--dead-server-seconds",
        type=int,
        default=default.dead_connection_seconds,
        help="how long requests wait for a new server when theirs has died (%(default)s)",
    )
    option(
        "--start-seconds",
        type=float,
        default=default.start_seconds,
        help="for its start; half of it, or 60, for a step that shows no progress (%(default)s)",
    )
    option("--keep-backing", action="store_true", help="swap-down keeps the backing file that swap-up has made")
    option("--state-folder", type=Path, default=default.folder, help="one for each swap area (%(default)s)")
    chosen = parser.parse_intermixed_args(arguments)
    return Options(
        parameters=tuple(map(_with_absolute_path, chosen.parameters)),
        priority=chosen.priority,
        discard=chosen.discard,
        may_hibernate=chosen.hibernate,
        timeout_seconds=chosen.timeout_seconds,
        dead_connection_seconds=chosen.dead_server_seconds,
        start_seconds=chosen.start_seconds,
        keep_backing=chosen.keep_backing,
        # Absolute, for the server starts in /; and by one name only, which is that of processes'
        # arguments.
        folder=chosen.state_folder.resolve(),
    )


def _with_absolute_path(parameter: str) -> str:
    """The server starts in /, and the caller means a place seen from where he is."""
    key, _, value = parameter.partition("=")
    if key == "backing" and value:
        return f"backing={Path(value).absolute()}"
    if key == "clean" and value.partition(":")[2]:
        name, _, path = value.partition(":")
        return f"clean={name}:{Path(path).absolute()}"
    return parameter


def _print(line: str) -> None:
    standard_streams.say(f"swap-up: {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 the swap is on, 1 it is not and a line says why, 2 wrong usage, 128+n a
    signal."""
    options = parse(arguments)
    try:
        with Interruption() as interruption:
            run(options, _print, interruption.held)
    except (SwapError, OSError) as error:
        print(f"swap-up: error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        is_on = StateFolder(options.folder).state.exists()
        outcome = "too late: the swap is on (swap-down ends it)" if is_on else "undone, nothing is left"
        print(f"swap-up: {interrupted}: {outcome}", file=sys.stderr)
        return interrupted.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(start.run("swap-up", main))
