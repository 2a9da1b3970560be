"""Between the runner and the stand-ins that its tests start: which server is wanted, and a journal
of what was served.

A disk is served with a budget of 1 MiB (the least there is) over a file, so that nearly all of what
a test writes is written back and fetched again. Very large ones, which are nearly empty, are in RAM
alone.
"""

import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Final, NoReturn

from zcache.pages.entry import PAGE_BYTES
from zcache.server.capacity import MAX_SIZE_BYTES

#: Which server a stand-in starts: one of the three below.
SERVER: Final = "ZCACHE_SUITES_SERVER"
ZCACHE: Final = "zcache"
PLAIN: Final = "plain"
LYING: Final = "lying"

#: A folder of one run of one test: its journal, and what is served from.
FOLDER: Final = "ZCACHE_SUITES_FOLDER"
#: Debian's own programs: a suite wants the Python that Debian's modules are for.
OWN_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"

#: How the name of a file in it begins that says of a stand-in, by its pid, that it is on its way.
STARTING: Final = "starting-"

_JOURNAL: Final = "journal"
_SERVED: Final = "served"
_BUDGET_BYTES: Final = 1 << 20
_MAX_FILE_BYTES: Final = 2 << 30
#: A store in RAM for a disk that is larger than that.
_MAX_BUDGET_BYTES: Final = 64 << 20


def refusal(size_bytes: int) -> str | None:
    """Why zcache does not serve a disk of that size, if so."""
    if not size_bytes:
        return "a disk of no bytes"
    if size_bytes > MAX_SIZE_BYTES:
        return f"a disk of {size_bytes} bytes, more than zcache can number"
    return None


def command(options: list[str], size_bytes: int, parameters: list[str]) -> list[str]:
    """What serves a disk of that size, as nbdkit, with nbdkit's options and its filters'
    parameters. A filter cuts off what is more than the test asks for, if those are not whole
    pages."""
    note(f"{_SERVED} {size_bytes}")
    if size_bytes % PAGE_BYTES:
        options = [*options, "--filter=truncate"]  # the innermost
        parameters = [*parameters, f"truncate={size_bytes}"]
        size_bytes += -size_bytes % PAGE_BYTES
    if os.environ[SERVER] == LYING:
        plugin = Path(__file__).with_name("lying_disk.py")
        return [real("nbdkit"), *options, "python", str(plugin), f"size={size_bytes}", *parameters]
    words = [f"size={size_bytes}"]
    if size_bytes <= _MAX_FILE_BYTES:
        backing = Path(os.environ[FOLDER]) / f"backing-{os.getpid()}"
        words += [f"budget={_BUDGET_BYTES}", f"backing={backing}"]
    else:
        words += [f"budget={_MAX_BUDGET_BYTES}", "overcommit=yes"]
    return [sys.executable, "-P", "-m", "nbd_plugin.serve", *options, *words, *parameters]


def hand_over(listening: socket.socket) -> None:
    """A socket that clients can connect to already, to what this process becomes
    (sd_listen_fds(3))."""
    listening.listen()
    os.dup2(listening.detach(), 3)
    os.set_inheritable(3, True)  # dup2 does nothing where it is 3 already
    os.environ["LISTEN_FDS"] = "1"
    os.environ["LISTEN_PID"] = str(os.getpid())


def note(line: str) -> None:
    """Into the journal. Several stand-ins may write at once."""
    with (Path(os.environ[FOLDER]) / _JOURNAL).open("a") as journal:
        journal.write(line + "\n")


def served(folder: Path) -> bool:
    """Whether a run's journal says that a disk was served in place of what the test asked for."""
    return any(line.startswith(_SERVED) for line in _journal(folder))


def remarks(folder: Path) -> list[str]:
    """Why others were not."""
    return [line for line in _journal(folder) if not line.startswith(_SERVED)]


def _journal(folder: Path) -> list[str]:
    journal = folder / _JOURNAL
    return journal.read_text().splitlines() if journal.exists() else []


def real(program: str) -> str:
    """The path of the program whose stand-in this is."""
    found = shutil.which(program, path=OWN_PATH)
    return found or sys.exit(f"suites: {program} is not installed; run scripts/setup suites")


def started() -> None:
    """Nobody needs to wait for this stand-in any more."""
    (Path(os.environ[FOLDER]) / f"{STARTING}{os.getpid()}").unlink(missing_ok=True)


def become(path: str, words: list[str]) -> NoReturn:
    """The server, which from now on has its socket, or soon will."""
    started()
    os.execv(path, words)


def become_the_real(program: str, words: list[str]) -> NoReturn:
    """For what is not zcache's."""
    become(real(program), [program, *words])
