"""Landlock (landlock(7)): which files a process may open, and which TCP ports it may use, from here
on. The kernel's calls, and no policy."""

import ctypes
import struct
from typing import Final

from zcache.linux.libc import LIBC, raise_errno

# glibc has no functions for these; the numbers are the same for every architecture.
_CREATE_RULESET: Final = 444  # Linux 5.13, all three
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446

# linux/landlock.h: what a rule is about.
_PATH_BENEATH: Final = 1
_NET_PORT: Final = 2  # since version 4


def version() -> int:
    """Which version of Landlock (landlock(7)) the kernel has; raises `OSError` if none."""
    return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)


def create_ruleset(attributes: bytes) -> int:
    """landlock_create_ruleset(2): a descriptor."""
    return _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)


def add_path_rule(ruleset: int, descriptor: int, accesses: int) -> None:
    """landlock_add_rule(2): these stay allowed for an open (O_PATH) file, or beneath a folder."""
    _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", accesses, descriptor), 0)


def add_port_rule(ruleset: int, port: int, accesses: int) -> None:
    """landlock_add_rule(2): these stay allowed for a TCP port, whatever the address."""
    _call(_ADD_RULE, ruleset, _NET_PORT, struct.pack("=QQ", accesses, port), 0)


def restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2): the calling thread, and those that it starts."""
    _call(_RESTRICT_SELF, ruleset, 0)


def _call(number: int, *arguments: object) -> int:
    result: int = LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise_errno()
    return result
