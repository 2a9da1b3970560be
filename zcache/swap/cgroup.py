"""A control group of the keeper's own, for it and the servers that it starts: nothing in it is ever swapped out.

A lock on memory (`zcache.hardening`) does not survive exec(2): between its start and its own locking a server can be
swapped out like any program, to the very device whose server it is to become; when the old one dies then, both wait
for ever (seen). A group with `memory.swap.max` 0 holds from the first instruction on, and for the image, too. It is
also out of the reach of a session's end, which takes all that is in the session's group; and it bears the marks by
which systemd's own killers pass a group by (`SPARED`), which for them is more than a process can say of itself.

Not under systemd's service manager: there the unit has a group, and says `MemorySwapMax=0` (`is_swapless`), and the
rest of it in the same way (scripts/systemd/zcache.service).
"""

import contextlib
import os
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")

#: Extended attributes of the group, "1" each. systemd-oomd, which kills whole groups and asks no process for its OOM
#: score (src/oom/oomd-util.c, systemd 248 and newer; root's groups only); and the last round of killing at shutdown
#: (src/shared/killall.c, 255 and newer), which spares a server from its first instruction on that way, where the @ in
#: its command line (zcache.hardening) comes later.
SPARED: Final = ("user.oomd_omit", "user.survive_final_kill_signal")


def enter_swapless(name: str, root: Path = ROOT) -> str | None:
    """Put this process into a group of that name that is never swapped out; None, or why it could not."""
    if is_swapless(root):
        return None
    group = root / name
    if not (root / "cgroup.controllers").exists():  # or all that follows would be folders and files, and no groups
        return f"{root} is not cgroup v2"
    try:
        with contextlib.suppress(OSError):  # is it on already? what follows will tell
            (root / "cgroup.subtree_control").write_text("+memory")
        group.mkdir(exist_ok=True)
        (group / "memory.swap.max").write_text("0")
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        return f"{group}: {error.strerror}"
    for mark in SPARED:
        with contextlib.suppress(OSError):  # Linux before 5.7 has none of these on groups
            os.setxattr(group, mark, b"1")
    return None


def join(name: str, root: Path = ROOT) -> None:
    """Put this process into the keeper's group, too, if there is one."""
    with contextlib.suppress(OSError):
        (root / name / "cgroup.procs").write_text(str(os.getpid()))


def is_swapless(root: Path = ROOT, own: Path = Path("/proc/self/cgroup")) -> bool:
    """Whether the group that this process is in must not be swapped out."""
    path = own.read_text().rpartition("0::")[2].strip()
    try:
        return (root / path.lstrip("/") / "memory.swap.max").read_text() == "0\n"
    except OSError:
        return False


def remove(name: str, root: Path = ROOT) -> None:
    """When the last process in it has ended; else it stays."""
    with contextlib.suppress(OSError):
        (root / name).rmdir()
