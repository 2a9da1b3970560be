"""The programs that keep the network up, and engines on this machine, kept in RAM while a swap is
on whose frames go over the network: `swap-up --network-in-ram`.

A program that waits for its own page cannot help that page to come. So the control groups that
these programs are in may have nothing in swap (`memory.swap.max` is 0), until the last swap that
has asked for it is off. They are found by their programs' names, as the kernel has them, so that a
DHCP client counts whoever has started it. Not touched are the root group, and those of people who
are logged in: there lies everything that they run. (The sshd of a session that is open is one of
these; the one that new sessions begin with is a service.)

systemd sets a unit's limits anew whenever its units are read again, and for each new start of it.
So it is told, too, by a drop-in of the unit's in /run. What a group had before is noted in a record
of its own before it is changed. One that somebody else has changed meanwhile is left alone.

What is in swap elsewhere by then, stays there until it is wanted.
"""

import contextlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zcache.errors import SwapError
from zcache.linux import cgroup
from zcache.linux.cgroup import LIMIT
from zcache.swap.control_groups import USER_SLICE, ControlGroups, version_2
from zcache.swap.locked_record import locked

#: The kernel's names, of 15 bytes at most.
PROGRAMS: Final = frozenset(
    {
        *("NetworkManager", "systemd-network", "systemd-resolve", "connmand", "wpa_supplicant", "iwd"),
        *("dhclient", "dhcpcd", "udhcpc", "dnsmasq", "unbound", "sshd"),
        *("redis-server", "valkey-server"),
    }
)
#: /run is emptied at boot, as control groups are.
RECORD: Final = Path("/run/zcache-network-programs.json")
NAME: Final = "zz-zcache-network.conf"
DROP_IN: Final = "# Written by zcache's swap-up --network-in-ram, removed by swap-down.\n[Service]\nMemorySwapMax=0\n"

Tell = Callable[[list[str]], object]


@dataclass
class _Held:
    """The record: who has asked for it (paths of state files), and what each group's limit was."""

    holders: list[str] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)


def find(groups: ControlGroups, root: Path) -> dict[Path, list[str]]:
    """The groups, and what runs in each of them."""
    found: dict[Path, list[str]] = {}
    for process in groups.processes():
        is_of_the_system = process.group != root and USER_SLICE not in process.group.relative_to(root).parts
        if process.name in PROGRAMS and is_of_the_system:
            found.setdefault(process.group, []).append(process.name)
    return found


def hold(
    holder: Path,
    found: dict[Path, list[str]],
    record: Path = RECORD,
    run: Path = cgroup.RUN,
    tell: Tell | None = None,
) -> list[str]:
    """On behalf of a swap area whose state file is `holder`: nothing of these groups is swapped out
    any more. Returns what could not be had, one line each."""
    failures = []
    with _locked(record) as (held, save):
        held.holders = [name for name in held.holders if Path(name).exists()]
        if not held.holders:
            # What a holder that was killed has left is not what was there before.
            held.before = {name: value for name, value in held.before.items() if _limit_of(Path(name)) == "0"}
        held.holders.append(str(holder))
        for group, names in found.items():
            try:
                held.before.setdefault(str(group), (group / LIMIT).read_text().strip())
            except OSError as error:
                who = ", ".join(sorted(set(names)))
                failures.append(f"{who} may be swapped out: {group / LIMIT}: {error.strerror}")
        save()
        for name in held.before:
            try:
                (Path(name) / LIMIT).write_text("0")
            except FileNotFoundError:
                continue  # it has ended
            except OSError as error:
                failures.append(f"{name} may be swapped out: {error.strerror}")
        _put_drop_ins([Path(name).name for name in held.before], run, tell)
    return failures


def release(holder: Path, record: Path = RECORD, run: Path = cgroup.RUN, tell: Tell | None = None) -> list[str]:
    """Undo `hold`: the last holder puts back what was there. Returns what could not be put back,
    one line each."""
    if not record.exists():
        return []
    failures: list[str] = []
    try:
        with _locked(record) as (held, save):
            held.holders = [name for name in held.holders if name != str(holder) and Path(name).exists()]
            if held.holders:
                save()
                return []
            _remove_drop_ins(run, tell)
            for name, value in held.before.items():
                path = Path(name) / LIMIT
                try:
                    if path.read_text().strip() == "0":
                        path.write_text(value)
                except FileNotFoundError:
                    continue  # it has ended
                except OSError as error:
                    failures.append(f"{path} could not be put back to {value}: {error.strerror}")
            record.unlink()
    except SwapError as error:
        return [str(error)]
    return failures


def keep_in_ram(holder: Path) -> tuple[list[str], list[str]]:
    """`hold`, on this machine: the programs that it was done for, and what could not be had."""
    root = version_2()
    if not root:
        return [], ["the programs that keep the network up may be swapped out: there are no control groups (version 2)"]
    found = find(ControlGroups(root), root)
    failures = hold(holder, found)
    return sorted({name for names in found.values() for name in names}), failures


def _limit_of(group: Path) -> str:
    """As it is now; "" if the group is gone."""
    try:
        return (group / LIMIT).read_text().strip()
    except OSError:
        return ""


def _put_drop_ins(names: list[str], run: Path, tell: Tell | None) -> None:
    """For the groups that are services of systemd's."""
    services = [name for name in names if name.endswith(".service")]
    if not services or not cgroup.is_systemd(run):
        return
    for name in services:
        path = run / f"systemd/system/{name}.d" / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(DROP_IN)
        path.chmod(0o644)
    _have_read_again(tell)


def _remove_drop_ins(run: Path, tell: Tell | None) -> None:
    paths = list((run / "systemd/system").glob(f"*.service.d/{NAME}"))
    for path in paths:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is something of others'
            path.parent.rmdir()
    if paths:
        _have_read_again(tell)


def _have_read_again(tell: Tell | None) -> None:
    """Not while the machine shuts down."""
    from zcache.swap.sleep_units import systemctl  # late: it loads subprocess

    if tell is not None:
        tell(["daemon-reload"])
    elif systemctl(["is-system-running"]).strip() != "stopping":
        systemctl(["daemon-reload"])


def _locked(record: Path) -> AbstractContextManager[tuple[_Held, Callable[[], None]]]:
    """The record and what writes it, for one at a time; made if it is not there."""
    return locked(record, _decode, _Held, f"set {LIMIT} of the groups of the network's programs as it should be")


def _decode(text: bytes) -> _Held:
    """Raises an error of Python's own for what is not a record: its paths are written to, by
    root."""
    held = _Held(**json.loads(text))
    if not all(type(each) is str for each in (*held.holders, *held.before, *held.before.values())):
        raise ValueError("not text")
    if not all(name.startswith("/") and ".." not in Path(name).parts for name in held.before):
        raise ValueError("not the paths of groups")
    return held
