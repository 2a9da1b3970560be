"""The file below a swap, when swap-up has made it: so swap-down removes it.

swap-up makes it empty, before the server starts, and notes which file that is; the server allocates
it. A block device, or a file that was there before, is never removed; nor is one that has taken the
place of ours, or that another server has taken since (it holds the lock of `BackingFile`). What is
left after a power cut bears zcache's header, and the next swap-up takes it, as one that was there
before.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from zcache.beneath.troubles import troubles_at
from zcache.errors import SwapError
from zcache.keeper.state import Backing


def refuse_unsafe(parameters: Sequence[str]) -> None:
    """Raise `SwapError` if a program has to write what is below: it waits for a page of its own,
    that page for the server, and the server for it. With `force=yes` the server only warns, as it
    does of all else."""
    for place in _places(parameters):
        with contextlib.suppress(OSError):  # which the server will say
            for reason, is_program in troubles_at(Path(place)):
                if is_program and "force=yes" not in parameters:
                    raise SwapError(
                        f"backing={place} {reason}, and the machine would stand still; give a block device, or a file "
                        "on another file system, or force=yes if that program can never be swapped out"
                    )


def _places(parameters: Sequence[str]) -> list[str]:
    words = (word.partition("=") for word in parameters)
    return [value for key, _, value in words if key == "backing" and value]


def make(parameters: Sequence[str], is_kept: bool) -> Backing | None:
    """The backing that the server's parameters name, made if it is not there; None if they name
    none.

    Whatever is wrong with it is for the server to say.
    """
    places = _places(parameters)
    if len(places) != 1:
        return None
    path = Path(os.path.realpath(places[0]))
    if path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm"):  # or a file would lie where a device is not
        return Backing(str(path))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return Backing(str(path))
    try:
        made = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return Backing(str(path), made.st_dev, made.st_ino, is_kept)


def remove(backing: Backing, even_if_kept: bool = False) -> str:
    """What became of it, in one line. Its server has ended."""
    what = f"backing {backing.path}"
    if not backing.is_made:
        return f"{what}: left as it is, for it was there before"
    if backing.is_kept and not even_if_kept:
        return f"{what}: kept"
    try:
        # What lies in this folder now, whatever becomes of the path to it.
        path = Path(backing.path)
        with (
            _opened(path.parent, os.O_PATH | os.O_DIRECTORY) as folder,
            # To write, or NFS would not lock it.
            _opened(path.name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, folder) as file,
        ):
            if not _is_the_one(backing, file):
                return f"{what}: left as it is, for it is not the file that swap-up made"
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path.name, dir_fd=folder)
    except BlockingIOError:
        return f"{what}: left as it is, for another server uses it"
    except FileNotFoundError:
        return f"{what}: was removed before"
    except OSError as error:
        return f"warning: {what}: is not removed: {error.strerror}"
    return f"{what}: removed"


@contextlib.contextmanager
def _opened(path: Path | str, flags: int, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_the_one(backing: Backing, file: int) -> bool:
    """By its number, which a new file may be given when the old one is gone: so by what it holds,
    too."""
    from zcache.tiers.header import HEADER  # late: the swap is off by now

    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) != (backing.device, backing.inode):
        return False
    begin = os.pread(file, len(HEADER), 0)
    return begin in (HEADER, bytes(len(begin)))  # blank: the server had not come so far
