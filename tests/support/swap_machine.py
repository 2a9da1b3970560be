"""A machine on which a swap goes up and down, that remembers, and fails where it is told."""

from collections.abc import Callable
from typing import cast

from zcache.errors import SwapError
from zcache.keeper.state import Backing, StateFolder, SwapState
from zcache.linux.process import ProcessIdentity
from zcache.swap.buildup import Buildup
from zcache.swap.down import take_down
from zcache.swap.teardown import Teardown, is_live
from zcache.swap.up import bring_up

SERVER = ProcessIdentity(7, 22)
DEVICE = "/dev/nbd0"
ATTACHED_BY_PID = 99
STEPS = [
    "load_driver",
    "start_server",
    "wait_for_server",
    "attach",
    "arm_keeper",
    "warm_up",
    "make_swap",
    "hold_sysctls",
    "hold_network_programs",
    "guard_sleep",
    "swap_on",
]


DOWN_STEPS = [
    "swap_off",
    "thaw",
    "detach",
    "stop_server",
    "release_network_programs",
    "put_back_sysctls",
    "unguard_sleep",
]


class FakeMachine:
    """Both halves of the machine, and what is true of it."""

    def __init__(self, failing: str = "", error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.failing, self.error = failing, error or SwapError("no such luck")
        self.running = self.attached = self.swapping = self.sysctls_held = self.sleep_guarded = False
        self.has_orphan = False  # a server without a keeper
        self.connected = True
        self.backing: Backing | None = None

    def _do(self, step: str) -> None:
        self.calls.append(step)
        if step == self.failing:
            raise self.error

    def _is_ours_on(self) -> bool:
        return self.swapping and self.attached

    def load_driver(self) -> None:
        self._do("load_driver")

    def start_server(self, announce: Callable[[ProcessIdentity, Backing | None], None]) -> None:
        announce(SERVER, self.backing)
        self._do("start_server")
        self.running = True

    def wait_for_server(self) -> None:
        self._do("wait_for_server")

    def attach(self, announce: Callable[[int], None]) -> str:
        announce(ATTACHED_BY_PID)
        self._do("attach")
        self.attached = True
        return DEVICE

    def arm_keeper(self, _device: str) -> None:
        self._do("arm_keeper")

    def warm_up(self, _device: str) -> None:
        self._do("warm_up")

    def make_swap(self, _device: str) -> None:
        self._do("make_swap")

    def hold_sysctls(self) -> None:
        self._do("hold_sysctls")
        self.sysctls_held = True

    def put_back_sysctls(self, _folder: object = None, may_be_lent: bool = False) -> None:
        self.may_be_lent = may_be_lent
        self.calls.append("put_back_sysctls")
        assert not self._is_ours_on()
        self.sysctls_held = False

    def hold_network_programs(self) -> None:
        self._do("hold_network_programs")
        assert not self.swapping

    def release_network_programs(self, _folder: object = None) -> None:
        self.calls.append("release_network_programs")
        assert not self._is_ours_on()

    def guard_sleep(self) -> None:
        self._do("guard_sleep")
        assert self.sysctls_held and not self.swapping
        self.sleep_guarded = True

    def unguard_sleep(self) -> None:
        self.calls.append("unguard_sleep")
        assert not self._is_ours_on() and not self.sysctls_held
        self.sleep_guarded = False

    def thaw(self, _folder: StateFolder) -> None:
        self.calls.append("thaw")
        assert not self._is_ours_on()  # the record may be swapped out, and nobody serve it

    def swap_on(self, _device: str) -> None:
        self._do("swap_on")
        self.swapping = True

    def is_swapping(self, device: str) -> bool:
        return self.swapping and device == DEVICE

    def is_running(self, _server: ProcessIdentity) -> bool:
        return self.running

    def attached_by_pid(self, _device: str) -> int | None:
        return ATTACHED_BY_PID if self.attached else None

    def device_of(self, attached_by_pid: int) -> str | None:
        return DEVICE if self.attached and attached_by_pid == ATTACHED_BY_PID else None

    def server_of(self, _keeper: ProcessIdentity, _folder: StateFolder) -> ProcessIdentity | None:
        return SERVER if self.has_orphan else None

    def is_connected(self, _server: ProcessIdentity) -> bool:
        return self.connected

    def reconnect(self, _keeper: ProcessIdentity, _folder: StateFolder) -> None:
        self._do("reconnect")
        self.connected = True

    def fail_requests(self, _folder: StateFolder) -> None:
        self._do("fail_requests")

    def swap_off(self, _device: str, look: Callable[[], None] = lambda: None) -> None:
        look()
        self._do("swap_off")
        self.swapping = False

    def detach(self, _device: str) -> None:
        assert not self.swapping
        self._do("detach")
        self.attached = False

    def stop_server(self, _keeper: ProcessIdentity = SERVER, _folder: StateFolder | None = None) -> str:
        assert not self._is_ours_on()
        assert not self.attached
        self._do("stop_server")
        self.running = False
        return "ended"

    def remove_backing(self, below: Backing) -> str:
        assert not (self.swapping or self.attached or self.running)
        self.calls.append(f"remove {below.path}")
        return "removed"

    def bring_up(self, folder: StateFolder) -> SwapState:
        return bring_up(folder, cast(Buildup, self))

    def take_down(self, state: SwapState, folder: StateFolder) -> None:
        take_down(state, folder, cast(Teardown, self), report=lambda _line: None)

    def is_live(self, state: SwapState, folder: StateFolder) -> bool:
        return is_live(state, folder, cast(Teardown, self))


def up_machine(folder: StateFolder, failing: str) -> tuple[FakeMachine, SwapState]:
    """One whose swap is on."""
    machine = FakeMachine(failing)
    return machine, machine.bring_up(folder)
