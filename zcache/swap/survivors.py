"""Who is left to answer a device's requests while its swap is taken off.

That is the keeper's affair; this is for when the keeper has died. Its server goes on. But a keeper
that died between the death of one server and the connecting of the next has left a server, with all
pages, that the device is not connected to: it is connected here, or the kernel would fail
everything when its patience ends. With neither, what was out is lost: requests are failed, for
those that are under way would wait for ever, and swapoff for them.

Either may die at any time, and swapoff take long: so this is looked at again and again.
"""

from collections.abc import Callable
from typing import Protocol

from zcache.errors import SwapError
from zcache.keeper.state import StateFolder, SwapState
from zcache.linux.process import ProcessIdentity


class Machine(Protocol):
    """What is needed of `Teardown`."""

    def is_running(self, server: ProcessIdentity) -> bool: ...
    def server_of(self, keeper: ProcessIdentity, folder: StateFolder) -> ProcessIdentity | None: ...
    def is_connected(self, server: ProcessIdentity) -> bool: ...
    def reconnect(self, keeper: ProcessIdentity, folder: StateFolder) -> None: ...
    def fail_requests(self, folder: StateFolder) -> None: ...


class Survivors:
    """Of one swap area, whose device is attached and swapped to."""

    def __init__(
        self, state: SwapState, device: str, folder: StateFolder, machine: Machine, report: Callable[[str], None]
    ) -> None:
        self._keeper = state.keeper
        self._device = device
        self._folder = folder
        self._machine = machine
        self._report = report
        self._said: set[str] = set()
        self._is_lost = False

    def look(self) -> None:
        """Do what is to be done; what fails is tried again at the next look."""
        machine, keeper, device = self._machine, self._keeper, self._device
        if self._is_lost or machine.is_running(keeper):
            return
        self._say(f"warning: the keeper (pid {keeper.pid}) is gone")
        server = machine.server_of(keeper, self._folder)
        try:
            if server is None:
                self._say(f"warning: so is its server, and what was swapped out to {device} is lost")
                machine.fail_requests(self._folder)
                self._is_lost = True
            elif not machine.is_connected(server):
                self._say(f"{device}: connecting it to the server that is left (pid {server.pid})")
                machine.reconnect(keeper, self._folder)
        except (SwapError, OSError) as error:
            self._say(f"warning: {error}")

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._report(line)
