"""The swap area on the device: made and turned on by util-linux, which knows the format and the
kernel's flags.

Memory is not yet short here, so programs are started freely.  Turning the area off is another
matter: swapoff.py.
"""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from zcache.errors import SwapError
from zcache.linux.proc_swaps import ProcSwaps, SwapEntry

LABEL = "zcache"
SBIN: Final = ("/usr/sbin", "/sbin")
Runner = Callable[[Sequence[str]], None]


def with_sbin(environment: Mapping[str, str]) -> dict[str, str]:
    """With the folders on PATH that Debian's su and cron leave out."""
    folders = environment.get("PATH", os.defpath).split(":")
    return {**environment, "PATH": ":".join([*folders, *(sbin for sbin in SBIN if sbin not in folders)])}


def run(command: Sequence[str]) -> None:
    """Run a tool to its end; when it fails, its own last line says why."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=with_sbin(os.environ)
        )
    except FileNotFoundError as error:
        raise SwapError(f"{command[0]} is not installed or not on PATH") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise SwapError(f"{command[0]} failed: {lines[-1]}")


def make_swap(device: str, runner: Runner = run) -> None:
    # Without --check and without a wipe of old signatures: the device is new and nothing but ours.
    runner(["mkswap", "--label", LABEL, device])


def swap_on(device: str, priority: int, discard: bool, runner: Runner = run) -> None:
    # --discard is both kinds: the whole area once, now, and each cluster as it falls free.
    runner(["swapon", "--priority", str(priority), *(["--discard"] if discard else []), device])


def verify_on(device: str, priority: int, swaps: ProcSwaps) -> SwapEntry:
    entry = swaps.find(device)
    if entry is None:
        raise SwapError(f"swapon reported success, but {device} is not in /proc/swaps")
    if entry.priority != priority:
        raise SwapError(f"{device} swaps with priority {entry.priority} instead of {priority}")
    return entry
