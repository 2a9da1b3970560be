"""What `zcache` becomes: commands that are programs of their own, and load nothing of the others.

swap-down runs when memory is short and imports little; a server's launcher is to have nothing in it
that was loaded before. So the process is replaced by exec(2), as `scripts/swap-down` and its like
start them. They parse their own words, and have their own exit statuses.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple


class Program(NamedTuple):
    """What to execute, and what it does, in a line of `zcache --help`."""

    command: tuple[str, ...]
    text: str


def _of_ours(module: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-m", module)


PROGRAMS: Final = {
    "up": Program(_of_ours("zcache.swap.up"), "turn a swap on (zcache up --help)"),
    "down": Program(_of_ours("zcache.swap.down"), "turn it off, once there is memory for what is in it"),
    "upgrade": Program(_of_ours("zcache.swap.upgrade"), "replace its server by the code on disk, with the swap on"),
    "pager": Program(_of_ours("zcache.pager.service"), "serve memory of programs, larger than the RAM they take"),
    "run": Program(_of_ours("zcache.run.run"), "run a job whose NumPy arrays are larger than the RAM that it may take"),
    "serve": Program(_of_ours("nbd_plugin.serve"), "serve a device with nbdkit: [nbdkit options] key=value…"),
}


def become(words: Sequence[str]) -> None:
    """Does not return if the first word is a program's name."""
    program = PROGRAMS.get(words[0]) if words else None
    if program:
        os.execv(program.command[0], [*program.command, *words[1:]])
