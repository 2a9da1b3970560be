"""What swap-up does to the machine, one method a step; `bring_up` (up.py) has their order, and
registers each one's undo."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcache.errors import SwapError
from zcache.keeper import launch as keeper_process
from zcache.keeper.launch import KeeperProcess
from zcache.keeper.state import DEFAULT_FOLDER, Backing, StateFolder
from zcache.linux import cgroup
from zcache.linux.proc_swaps import ProcSwaps
from zcache.linux.process import ProcessIdentity
from zcache.swap import area, backing, nbd_device, neighbours, network_programs, sleep_units, sysctls
from zcache.swap.apart import apart
from zcache.swap.nbd_device import NbdDevice
from zcache.swap.teardown import Report, Teardown

#: For systemd to forget the scope of a swap that has ended; the next one has another name then.
SCOPE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Options:
    """What swap-up is told."""

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
    # What keeps the network up is never swapped out.
    network_in_ram: bool = False


DEFAULTS: Final = Options()


class Buildup:
    """One swap area on its way up; the fake of the unit tests has the same methods."""

    def __init__(self, options: Options, folder: StateFolder, report: Report) -> None:
        self._options = options
        self.folder = folder
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

        command = [*self.scope(), *keeper_process.command(self.folder, options.parameters)]
        try:
            self._keeper = KeeperProcess(command, self.folder.log, announced, options.start_seconds)
        except BaseException:
            self._remove_backing()
            raise

    def scope(self) -> list[str]:
        """What puts the keeper into a group of systemd's, where there is one to be had: tried
        before it is needed."""
        if not cgroup.needs_scope():
            return []
        try:
            area.run([*cgroup.scope(f"{self.folder.cgroup}-trial-{os.getpid()}"), "true"])
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
        name = self.folder.cgroup
        deadline_seconds = time.monotonic() + SCOPE_SECONDS
        while not sleep_units.is_free(cgroup.scope_unit(name)):
            if time.monotonic() > deadline_seconds:
                return f"{name}-{os.getpid()}"
            time.sleep(0.1)
        return name

    def wait_for_server(self) -> None:
        assert self._keeper is not None
        self._keeper.wait_until_ready(self.folder, self._options.start_seconds, self._report)

    def stop_server(self) -> None:
        assert self._keeper is not None
        keeper = self._keeper.identity
        with contextlib.closing(Teardown(self._report)) as teardown:
            if teardown.stop_server(keeper, self.folder) == "stuck":
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
            path = apart(lambda: nbd_device.attach(self.folder.socket, options.discard, *seconds).path, announced)
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
            self.folder.arm_keeper(*messages)

        apart(prepare)
        deadline_seconds = time.monotonic() + self._options.start_seconds
        while not self.folder.armed.exists():
            self._keeper.check_running()
            if time.monotonic() > deadline_seconds:
                raise SwapError(
                    f"no standby is ready after {self._options.start_seconds:.0f} s (--start-seconds); "
                    f"it is at this step: {self._keeper.step()}"
                )
            time.sleep(0.05)

    def detach(self, device: str) -> None:
        self.folder.disarm_keeper()
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
            sysctls.hold(self.folder.state)

        apart(hold)

    def put_back_sysctls(self) -> None:
        with contextlib.closing(Teardown(self._report)) as teardown:
            teardown.put_back_sysctls(self.folder)

    def hold_network_programs(self) -> None:
        """If that was asked for."""
        if not self._options.network_in_ram:
            return
        assert self._keeper is not None
        keeper = self._keeper.identity

        def hold() -> tuple[list[str], list[str]]:
            cgroup.join(keeper.pid)  # as for the settings above
            return network_programs.keep_in_ram(self.folder.state)

        names, failures = apart(hold)
        self._report(f"kept in RAM, for the network: {', '.join(names) or 'no program that is known for that runs'}")
        for failure in failures:
            self._report(f"warning: {failure}")

    def release_network_programs(self) -> None:
        with contextlib.closing(Teardown(self._report)) as teardown:
            teardown.release_network_programs(self.folder)

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
