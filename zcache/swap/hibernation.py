"""While the swap is on the machine must not hibernate: the kernel freezes the server with all other
programs, and then swaps out, to the server, to make room for the image of memory. Nothing comes
back. (And the image would be written to a swap area: systemd would choose /dev/nbd0, which is gone
when the machine is off.)

What has the kernel refuse it (EPERM for a write to /sys/power/state), and leaves suspending alone:

  * Secret memory (memfd_secret(2)): while any exists, the kernel does not hibernate
    (`hibernation_available()` in kernel/power/hibernate.c). The keeper holds an empty one for as
    long as it lives. From Linux 6.5 on; before that only with `secretmem.enable=1` on the kernel's
    command line.
  * The kernel's own fault injection (`pm-notifier-error-inject`, a module that Debian's kernels
    have): it fails the step by which all drivers are told of a hibernation, with the error that is
    written to a file of debugfs. swap-up does that where there is no secret memory, and the last
    swap-down undoes it.

Not used: an open /dev/snapshot, which makes hibernation EBUSY, but tells all drivers that one is
under way: no CPU can be plugged, no SD card is noticed, firmware is read ahead. And lockdown, which
forbids much else, until a reboot.
"""

import contextlib
import subprocess
from pathlib import Path
from typing import Final

POWER: Final = Path("/sys/power")
DEBUG: Final = Path("/sys/kernel/debug")
MODULE: Final = "pm-notifier-error-inject"
#: The error that the kernel is to meet, and none: EPERM, as with secret memory.
REFUSED: Final = "-1"
ALLOWED: Final = "0"
TOOL_SECONDS: Final = 30.0


def is_possible(power: Path = POWER) -> bool:
    """Whether the kernel would hibernate."""
    try:
        return "disk" in (power / "state").read_text().split() and "[disabled]" not in (power / "disk").read_text()
    except OSError:  # it cannot
        return False


def injection(debug: Path = DEBUG) -> Path:
    return debug / "notifier-error-inject/pm/actions/PM_HIBERNATION_PREPARE/error"


def refuse(power: Path = POWER, debug: Path = DEBUG) -> str | None:
    """Have the kernel refuse to hibernate, if it does not yet; None, or one line on why it does
    not."""
    if not is_possible(power):
        return None
    error = injection(debug)
    try:
        if not error.exists():
            subprocess.run(["modprobe", MODULE], capture_output=True, check=True, timeout=TOOL_SECONDS)
        error.write_text(REFUSED)
    except (OSError, subprocess.SubprocessError):
        return (
            "warning: this kernel cannot be kept from hibernating, and with the swap on that would hang the machine: "
            "do not write `disk` to /sys/power/state (systemd does not); secretmem.enable=1 on the kernel's command "
            "line has it refused"
        )
    return None


def allow(debug: Path = DEBUG) -> None:
    """Undo `refuse`. What cannot be undone is undone by a reboot."""
    error = injection(debug)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if error.read_text().strip() == REFUSED:
            error.write_text(ALLOWED)
            subprocess.run(["modprobe", "-r", MODULE], capture_output=True, check=False, timeout=TOOL_SECONDS)
