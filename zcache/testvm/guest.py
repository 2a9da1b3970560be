"""The guest's half of a test VM: make the place ready, run one command, report how it ended.

Runs as root in the guest, from the host's own tree, as `guest.py JOB_FOLDER`. The
folder is shared with the host: `job.json` comes in; `started` and `result.json` go out. Guarantee:
`result.json` exists only when the command has ended *and* every undo (swapoff) has been done and
checked, so its absence means that the machine, not the command, failed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

DEVICE_DEADLINE_SECONDS = 15
#: As QEMU's user network has them.
GUEST_NETWORK = "10.0.2.15/24"
GATEWAY = "10.0.2.2"


class GuestError(Exception):
    """Something around the command failed: one line for the host."""


def main(job_folder: Path) -> None:
    job: dict[str, Any] = json.loads((job_folder / "job.json").read_text())
    # The reporter has to outlive what the command may do to memory.
    Path("/proc/self/oom_score_adj").write_text("-1000")
    result: dict[str, Any]
    try:
        with ExitStack() as undo:
            give_tmp(keep=[Path(path) for path in job["keep"]])
            if job["network"]:
                network_on()
            if job["swap_serial"] is not None:
                swap_on(find_disk(job["swap_serial"]), undo)
            (job_folder / "started").touch()
            status = run(job["command"])
        result = {"exit_status": status}
    except GuestError as error:
        result = {"error": str(error)}
    staged = job_folder / "result.json.new"
    staged.write_text(json.dumps(result))
    staged.replace(job_folder / "result.json")


def run(command: list[str]) -> int:
    """The command's exit status by the shell's rule: 128 + n for signal n, 126/127 if it cannot
    start."""

    def mortal_again() -> None:
        Path("/proc/self/oom_score_adj").write_text("0")

    try:
        # preexec_fn is safe with one thread, and the command must not inherit the immunity even for
        # a moment.
        status = subprocess.call(command, preexec_fn=mortal_again)
    except OSError as error:
        print(f"vm: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    return status if status >= 0 else 128 - status


def give_tmp(keep: list[Path]) -> None:
    """A writable /tmp over the read-only root. What in `keep` lies under /tmp stays visible through
    it.

    It is a tmpfs, as on many systems: what is written there can be swapped out.
    """
    hidden = [path for path in keep if path.is_relative_to("/tmp")]
    waiting = [Path(f"/run/kept{index}") for index in range(len(hidden))]
    for path, place in zip(hidden, waiting, strict=True):
        place.mkdir()
        tool("mount", "--bind", str(path), str(place))
    tool("mount", "-t", "tmpfs", "-o", "mode=1777,nosuid,nodev", "tmp", "/tmp")
    for path, place in zip(hidden, waiting, strict=True):
        path.mkdir(parents=True, exist_ok=True)
        tool("mount", "--bind", str(place), str(path))  # not --move: systemd shares its mounts


def find_disk(serial: str) -> Path:
    """The virtio disk with this serial number, asked of the kernel, so that udev need not have
    finished."""
    tool("modprobe", "virtio_blk")
    found: list[Path] = []

    def appeared() -> bool:
        found.extend(
            Path("/dev") / entry.parent.name
            for entry in Path("/sys/block").glob("vd*/serial")
            if entry.read_text().strip() == serial
        )
        return bool(found) and found[0].exists()

    if not wait_for(appeared):
        raise GuestError(f"no disk with serial {serial} appeared in {DEVICE_DEADLINE_SECONDS} s")
    return found[0]


def network_on() -> None:
    """The one card is up, with the address that QEMU's user network has for a guest."""
    tool("modprobe", "virtio_net")
    tool("ip", "link", "set", "lo", "up")

    def is_up() -> bool:
        """udev may give it another name until it is."""
        for entry in Path("/sys/class/net").glob("*/device"):
            with suppress(GuestError):
                tool("ip", "link", "set", entry.parent.name, "up")
                return True
        return False

    if not wait_for(is_up):
        raise GuestError(f"no network card appeared in {DEVICE_DEADLINE_SECONDS} s")
    card = next(Path("/sys/class/net").glob("*/device")).parent.name
    tool("ip", "addr", "add", GUEST_NETWORK, "dev", card)
    tool("ip", "route", "add", "default", "via", GATEWAY)


def swap_on(device: Path, undo: ExitStack) -> None:
    """Swap on the device; off again, and checked, when `undo` closes."""
    tool("mkswap", str(device))
    tool("swapon", "--discard", "--priority", "100", str(device))
    undo.callback(swap_off, device)
    if not swaps_on(device):
        raise GuestError(f"swapon {device} succeeded, but /proc/swaps does not name it")


def swap_off(device: Path) -> None:
    """A command may have taken it off itself: only the state afterwards counts."""
    if swaps_on(device):
        tool("swapoff", str(device))
    if swaps_on(device):
        raise GuestError(f"swapoff {device} succeeded, but /proc/swaps still names it")


def swaps_on(device: Path) -> bool:
    rows = Path("/proc/swaps").read_text().splitlines()[1:]
    return any(row.split()[0] == str(device) for row in rows)


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEVICE_DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def tool(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise GuestError(f"{' '.join(argv)}: {done.stderr.strip() or f'exit status {done.returncode}'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
