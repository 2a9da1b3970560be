"""Least privilege: what the server gives up once it serves, for itself and every thread and program
that comes after.

It holds everybody's memory, so whoever takes it over has what was swapped out. This is so that they
have no more: no capabilities, no way to get any, no file to write to but those that are open, and
nothing to dump it with. The user stays what it was: another one would gain nothing over that, and a
swap server must not be ended by whoever has the same user.

All of it belongs to a thread and is inherited, so it comes while the process has one thread, after
everything that needs privileges (opening, locking, real time, and even asking whether IO_FLUSHER is
set) and before all other threads.
"""

import contextlib
import os
import resource
import struct
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from zcache.linux import landlock, libc

_STATUS: Final = Path("/proc/thread-self/status")
_LAST_CAPABILITY: Final = Path("/proc/sys/kernel/cap_last_cap")
_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb")

# linux/landlock.h. Accesses to files are numbered from 0 on; how many there are depends on the
# kernel's version of it.
_READ_FILE: Final = 1 << 2
_READ: Final = _READ_FILE | 1 << 3  # a file, a folder
_REMOVE_FOLDER: Final = 1 << 4
_REMOVE_FILE: Final = 1 << 5
_FILE_ACCESSES: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_ACCESSES_SINCE_5: Final = 16
_BIND: Final = 1 << 0  # a TCP port; since version 4
_CONNECT: Final = 1 << 1  # to one; since version 4
_NETWORK_SINCE: Final = 4
_SCOPE: Final = 1 << 0 | 1 << 1  # abstract sockets and processes of others; since version 6


def give_up(
    control: Path | None,
    temporary: Path | None = None,
    read_later: Path | None = None,
    connect_ports: Collection[int] = (),
    connect_anywhere: bool = False,
) -> None:
    """Keep what serving takes: memory may grow and be locked, the program and /proc may be read,
    and one file that is read later; and the control socket and a temporary folder, once it is
    empty, removed. TCP connections may be made to `connect_ports` of any host alone, or with
    `connect_anywhere` to all (nodes of a Cluster may have any port). Raises `OSError` where the
    kernel has no Landlock; all else has been given up then.
    """
    _lift_memlock_limit()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    _empty_bounding_set()
    libc.capset(_needed() & _capabilities("CapPrm"))
    rules = {folder: _READ for folder in (Path("/proc"), *map(Path, filter(None, sys.path))) if folder.is_dir()}
    if control:
        rules[control.parent] = rules.get(control.parent, 0) | _REMOVE_FILE
    if temporary:
        rules[temporary] = rules.get(temporary, 0) | _REMOVE_FILE
        rules[temporary.parent] = rules.get(temporary.parent, 0) | _REMOVE_FOLDER
    if read_later:
        rules[read_later] = _READ_FILE
    _restrict(rules, connect_ports, connect_anywhere)


def are_given_up() -> bool:
    """Asked of the kernel, for the calling thread; of the files by trying one that anybody may
    write to."""
    if any(_capabilities(name) & ~_needed() for name in _SETS):
        return False
    if libc.prctl(libc.PR_GET_NO_NEW_PRIVS, 0) != 1 or libc.prctl(libc.PR_GET_DUMPABLE, 0) != 0:
        return False
    try:
        os.close(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
    except PermissionError:
        return True
    return False


def are_all_given_up() -> bool:
    """Whether no capability is left, not even the one that locks memory where a limit stands
    against it."""
    return not any(_capabilities(name) for name in _SETS)


def _capabilities(name: str) -> int:
    """One of the calling thread's sets."""
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields[name], 16)


def _needed() -> int:
    """Every new mapping (a thread's stack, the heap as it grows) is locked, and counts. Without a
    limit that takes no capability."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return 0 if soft == resource.RLIM_INFINITY else 1 << libc.CAP_IPC_LOCK


def _lift_memlock_limit() -> None:
    """Needs CAP_SYS_RESOURCE, or a hard limit that is none."""
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _empty_bounding_set() -> None:
    """Without CAP_SETPCAP it stays; with no new privileges nothing comes of it either way."""
    with contextlib.suppress(PermissionError):
        for capability in range(int(_LAST_CAPABILITY.read_text()) + 1):
            libc.prctl(libc.PR_CAPBSET_DROP, capability)


def _restrict(rules: Mapping[Path, int], connect_ports: Collection[int], connect_anywhere: bool) -> None:
    """Of all that can be done to a file by its path, leave what is allowed beneath these folders,
    or to these files; of TCP, connecting to these ports, or to all."""
    version = landlock.version()
    accesses = (1 << _FILE_ACCESSES.get(version, _FILE_ACCESSES_SINCE_5)) - 1
    network = _BIND if connect_anywhere else _BIND | _CONNECT
    words = [accesses] + [network] * (version >= _NETWORK_SINCE) + [_SCOPE] * (version >= 6)
    ruleset = landlock.create_ruleset(struct.pack(f"={len(words)}Q", *words))
    try:
        for folder, allowed in rules.items():
            descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            try:
                landlock.add_path_rule(ruleset, descriptor, allowed)
            finally:
                os.close(descriptor)
        if version >= _NETWORK_SINCE and not connect_anywhere:
            for port in connect_ports:
                landlock.add_port_rule(ruleset, port, _CONNECT)
        landlock.restrict_self(ruleset)
    finally:
        os.close(ruleset)
