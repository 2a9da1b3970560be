"""What systemd is told for as long as any swap of zcache's is on: to run `zcache sleep` around a
suspend, and not to hibernate.

Drop-ins in /run, one for all swap areas. Those of the units that suspend the machine run `pre`
before anything else of a suspend, and nothing is suspended if that fails; `post` runs whatever came
of it. (Not files in system-sleep/: those run all at once, what they return is ignored, and from
systemd 256 on they come after user.slice was frozen.) The one in sleep.conf.d has logind and
systemd-sleep say no to all that hibernates.

When the last swap goes off they are removed. Were they left (by an older swap-down), `zcache sleep`
would find no swap on and do nothing. So systemd need not hear of their removal at once: while the
machine shuts down it is not told.

When all areas were turned on with `--hibernate` it may hibernate, and `zcache sleep` takes the swap
off before that.
"""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zcache.errors import SwapError
from zcache.keeper.state import StateFolder
from zcache.linux import cgroup
from zcache.swap import hibernation, sysctls

UNITS: Final = ("suspend", "hibernate", "hybrid-sleep", "suspend-then-hibernate")
#: Late in the order of names, for the last one counts.
NAME: Final = "zz-zcache.conf"
#: For a busy machine; swap-up and swap-down go on without.
TOOL_SECONDS: Final = 60.0
NO_HIBERNATION: Final = """# Written by zcache's swap-up, removed by swap-down: hibernation hangs while its swap is on.
[Sleep]
AllowHibernation=no
AllowSuspendThenHibernate=no
AllowHybridSleep=no
"""


def command(moment: str, python: str = sys.executable) -> str:
    """The command line of `zcache sleep`, as a unit spells it."""
    quoted = python.replace("\\", r"\\").replace('"', r"\"").replace("%", "%%").replace("$", "$$")
    return f'"{quoted}" -I -m zcache.swap.sleep {moment}'


def unit_drop_in(option: str = "") -> str:
    return (
        "# Written by zcache's swap-up, removed by swap-down: see zcache/swap/sleep.py.\n"
        f"[Service]\nExecStartPre={command('pre')}{option}\nExecStopPost={command('post')}{option}\n"
    )


def _files(run: Path, may_hibernate: bool) -> dict[Path, str | None]:
    """What is in each; None: it shall not be there."""
    option = " --hibernate" if may_hibernate else ""
    units: dict[Path, str | None] = {
        run / f"systemd/system/systemd-{name}.service.d" / NAME: unit_drop_in("" if name == "suspend" else option)
        for name in UNITS
    }
    return {**units, run / "systemd/sleep.conf.d" / NAME: None if may_hibernate else NO_HIBERNATION}


Tell = Callable[[Sequence[str]], str]


def systemctl(words: Sequence[str]) -> str:
    """What it says; nothing, if it does not answer."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=TOOL_SECONDS, check=False)
        return done.stdout if done.returncode == 0 or words[0] == "is-system-running" else ""
    return ""


def is_free(unit: str, tell: Tell = systemctl) -> bool:
    """Whether systemd has no unit of that name, nor keeps one that has ended."""
    return tell(["show", "--property=LoadState", "--value", unit]).strip() == "not-found"


def guard(report: Callable[[str], None]) -> None:
    """Before the swap is on. What cannot be had is said, and no reason not to swap."""
    try:
        put(_may_hibernate())
    except (OSError, SwapError) as error:
        report(f"warning: systemd does not run `zcache sleep` around a suspend: {error}")
    problem = hibernation.refuse()
    if problem:
        report(problem)


def unguard() -> None:
    """When the swap is off: unless another one is on, or is turned on just now."""
    if not _is_any_on():
        remove()
        hibernation.allow()
    if _is_any_on():
        guard(lambda _line: None)


def _is_any_on() -> bool:
    try:
        return bool(sysctls.holders())
    except SwapError:  # a damaged record; swap-down has said so
        return False


def _may_hibernate() -> bool:
    """Whether that was asked for with all swaps that are on."""
    states = [StateFolder(Path(holder).parent).load() for holder in sysctls.holders()]
    return all(state and state.may_hibernate for state in states)


def put(may_hibernate: bool, run: Path = cgroup.RUN, tell: Tell = systemctl) -> None:
    """Does nothing without systemd. Raises `OSError`."""
    if not cgroup.is_systemd(run):
        return
    is_new = False
    for path, text in _files(run, may_hibernate).items():
        if text is None:
            _remove(path)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            path.chmod(0o644)
            is_new = True
    if is_new:
        tell(["daemon-reload"])


def remove(run: Path = cgroup.RUN, tell: Tell = systemctl) -> None:
    """Folders that are empty then go, too."""
    if not cgroup.is_systemd(run):
        return
    was_there = [_remove(path) for path in _files(run, False)]
    if any(was_there) and tell(["is-system-running"]).strip() != "stopping":
        tell(["daemon-reload"])


def _remove(path: Path) -> bool:
    """Whether it was there."""
    try:
        path.unlink()
    except OSError:
        return False
    with contextlib.suppress(OSError):  # there is something of others'
        path.parent.rmdir()
    return True
