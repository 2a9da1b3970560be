"""A throw-away virtual machine with a stock Debian kernel, for whatever must really swap, stall or
panic.

Here: what a run is asked for and what it answers. `vm.run_in_vm` is the run.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
#: By which a guest with a network reaches the host's loopback: QEMU's user network has it so.
HOST_ADDRESS: Final = "10.0.2.2"


@dataclass(frozen=True)
class VmConfig:
    """A guest, and what it is given."""

    memory: str = "900M"
    cpus: int = 2
    # Raw images; the guest finds the n-th, from 0, as /dev/disk/by-id/virtio-vmdisk<n>.
    disks: tuple[Path, ...] = ()
    kernel_args: tuple[str, ...] = ()
    # For boot and command together.
    timeout_seconds: float = 600.0
    # The one writable folder that outlives the guest; the same path in it.
    share: Path | None = None
    # None: a new file in the temporary folder.
    kernel_log: Path | None = None
    # Also turns an oops into a panic: for tests in which a stall is a failure.
    hung_task_panic: bool = False
    # PID 1 is systemd, the command a unit of its, and what it says goes to the kernel log; boots in
    # twice the time.
    systemd: bool = False
    # `key=value` words for scripts/serve: the guest swaps to a server on the host. None: no swap.
    host_swap: tuple[str, ...] | None = None
    # The same with a server that is somebody else's: its socket.
    host_socket: Path | None = None
    # A network card, and at HOST_ADDRESS whoever listens on the host's 127.0.0.1.
    network: bool = False


@dataclass(frozen=True)
class VmResult:
    """What became of a run."""

    # None: the command did not get to an end that can be trusted; `failure` says why.
    exit_status: int | None
    timed_out: bool
    panicked: bool
    kernel_log: Path
    seconds: float
    failure: str | None = None
    # The swap server's last report, and how it ended; None without host_swap.
    server_status: dict[str, Any] | None = None
    server_exit_status: int | None = None


def say(line: str) -> None:
    """How far a run has come, for whoever waits for it."""
    print(f"vm: {line}", file=sys.stderr, flush=True)
