"""A control group of the keeper's own, for it and the servers that it starts: nothing in it is ever
swapped out.

A lock on memory (`zcache.hardening`) does not survive exec(2): between its start and its own
locking a server can be swapped out like any program, to the very device whose server it is to
become; when the old one dies then, both wait for ever (seen). A group with `memory.swap.max` 0
holds from the first instruction on, and for the image, too. It is also out of the reach of a
session's end, which takes all that is in the session's group; and it bears the marks by which
systemd's own killers pass a group by (`SPARED`), which for them is more than a process can say of
itself.

Where systemd runs, the group is a scope that systemd makes (`scope`) with that limit as a setting
of its own: what it has not made, and what others switch on in its groups, it may take back. The
shipped unit says `MemorySwapMax=0` itself, and the rest in the same way
(scripts/systemd/zcache.service). Elsewhere the group is made here (`enter_swapless`).

Whoever may write there can take the limit away, or the whole memory controller. So the keeper looks
at it now and then, and puts it back (`SwaplessGroup`). Whoever asks for the status looks, too
(`is_swapless`), and is told.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
OWN: Final = Path("/proc/self/cgroup")
RUN: Final = Path("/run")
LIMIT: Final = "memory.swap.max"

#: Of the scope. (Not delegated: that would switch all controllers on for its neighbours, and
#: nothing is made in it.) It is never swapped out, which systemd itself sees to, and outlives
#: everything but swap-down: no shutdown stops it, no stop kills what is in it, and neither does
#: systemd-oomd.
SCOPE: Final = (
    "MemorySwapMax=0",
    "DefaultDependencies=no",
    "KillMode=process",
    "SendSIGKILL=no",
    "ManagedOOMPreference=omit",
    "OOMPolicy=continue",
    "TasksMax=infinity",
)

#: Extended attributes of the group, "1" each. systemd-oomd, which kills whole groups and asks no
#: process for its OOM score (src/oom/oomd-util.c, systemd 248 and newer; root's groups only); and
#: the last round of killing at shutdown (src/shared/killall.c, 255 and newer), which spares a
#: server from its first instruction on that way, where the @ in its command line (zcache.hardening)
#: comes later.
SPARED: Final = ("user.oomd_omit", "user.survive_final_kill_signal")


def scope_unit(name: str) -> str:
    """As systemd spells the scope of that name."""
    return re.sub(r"[^\w:.-]", "_", name, flags=re.ASCII) + ".scope"


def scope(name: str) -> list[str]:
    """What to put before a command that shall run in a scope of that name, as the process that it
    is."""
    properties = [word for each in SCOPE for word in ("-p", each)]
    return ["systemd-run", "--scope", "--quiet", "--collect", f"--unit={scope_unit(name)}", *properties, "--"]


def is_systemd(run: Path = RUN) -> bool:
    """Whether it is what runs this machine (sd_booted(3))."""
    return (run / "systemd/system").is_dir()


def needs_scope(root: Path = ROOT, run: Path = RUN) -> bool:
    """Whether systemd runs, and has not put us into a group that will do."""
    return is_systemd(run) and not is_swapless(root)


def enter_swapless(name: str, root: Path = ROOT) -> str | None:
    """Put this process into a group of that name that is never swapped out; None, or why it could
    not."""
    if is_swapless(root):
        _mark_as_spared(_group(root, OWN))
        return None
    group = root / name
    if not (root / "cgroup.controllers").exists():  # or all that follows would be folders and files, and no groups
        return f"{root} is not cgroup v2"
    try:
        _switch_on_memory(group.parent, root)
        group.mkdir(exist_ok=True)
        (group / LIMIT).write_text("0")
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        return f"{group}: {error.strerror}"
    _mark_as_spared(group)
    return None


def join(pid: int, root: Path = ROOT, proc: Path = Path("/proc")) -> None:
    """Put this process into the group of another one, too, if that is never swapped out."""
    with contextlib.suppress(OSError):
        if is_swapless(root, proc / str(pid) / "cgroup"):
            (_group(root, proc / str(pid) / "cgroup") / "cgroup.procs").write_text(str(os.getpid()))


def is_swapless(root: Path = ROOT, own: Path = OWN) -> bool:
    """Whether the group that a process is in must not be swapped out."""
    try:
        return (_group(root, own) / LIMIT).read_text() == "0\n"
    except OSError:
        return False


def remove(name: str, root: Path = ROOT) -> None:
    """When the last process in it has ended; else it stays. A scope is systemd's to remove, and
    goes by itself."""
    with contextlib.suppress(OSError):
        (root / name).rmdir()


class SwaplessGroup:
    """The group of this process, which must not be swapped out now (`OSError` is raised if it has
    no such limit).

    The limit is looked at through a descriptor that is open: nothing is looked up or allocated for
    that.
    """

    def __init__(self, root: Path = ROOT, own: Path = OWN) -> None:
        self._root = root
        self.path = _group(root, own)
        self._limit = os.open(self.path / LIMIT, os.O_RDONLY | os.O_CLOEXEC)

    def holds(self) -> bool:
        """Whether it still is not swapped out."""
        try:
            return os.pread(self._limit, 16, 0) == b"0\n"
        except OSError:  # ENODEV: the group has no memory controller any more
            return False

    def put_back(self) -> None:
        """Make it so again; raises `OSError`."""
        _switch_on_memory(self.path.parent, self._root)
        (self.path / LIMIT).write_text("0")
        # Of a controller that was off, the file is a new one.
        limit = os.open(self.path / LIMIT, os.O_RDONLY | os.O_CLOEXEC)
        os.close(self._limit)
        self._limit = limit


def _mark_as_spared(group: Path) -> None:
    for mark in SPARED:
        with contextlib.suppress(OSError):  # Linux before 5.7 has none of these on groups
            os.setxattr(group, mark, b"1")


def _group(root: Path, own: Path) -> Path:
    return root / own.read_text().rpartition("0::")[2].strip().lstrip("/")


def _switch_on_memory(group: Path, root: Path) -> None:
    """For the groups in `group`, from the root on. Is it on already? What follows will tell."""
    above = [each for each in (group, *group.parents) if each.is_relative_to(root)]
    for each in reversed(above):
        with contextlib.suppress(OSError):
            (each / "cgroup.subtree_control").write_text("+memory")
