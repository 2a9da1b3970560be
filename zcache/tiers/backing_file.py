"""The tier that is a regular file or a block device: slot n is the n-th frame-sized block of it.

Block 0 is the header (`header.py`): it says that what follows is zcache's, so that a later start
may overwrite it, and nothing else. Nothing below outlives the server: swap does not survive a
reboot, so writes are never synced. The blocks of a file are its own, and all allocated, before the
first page is written (`allocation.py`).

O_DIRECT is used where the file allows it: the page cache would keep a second copy of every frame,
in the memory that this program is there to save, and would need memory to write. Frames are written
straight from their RAM slots (`pwritev`), which are page-aligned, so that no bounce buffer is
needed and each batch is one system call.

Not over a network, though. A process that is killed waits for a disk before it ends, but not for a
file server: what it was reading may arrive later, straight into RAM slots that its successor uses
by then, and what it was writing may land in a slot that the successor has written anew. Through the
page cache neither can be.

Safety: a file or device is never overwritten unless it is blank (all zero), holds our header, or
`force` was given; it is locked (`flock`; a block device by `O_EXCL`, which the kernel refuses while
it is mounted or swapped on) for as long as we live, and nobody else has the same blocks through a
loop device when it is opened (`zcache.beneath`).
"""

import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zcache.beneath.lookup import mount_of
from zcache.beneath.troubles import is_remote, troubles
from zcache.beneath.users import used_otherwise
from zcache.errors import BadInput
from zcache.hardening.limits import in_words
from zcache.linux.files import data_extents, why_not_opened
from zcache.tiers.allocation import Progress, allocate, make_own
from zcache.tiers.header import header_of, is_ours, other_owner
from zcache.tiers.slot_map import SlotMap

#: How much is read at once while looking for foreign content: large enough for a disk's full speed.
SCAN_BYTES: Final = 1 << 20

#: How often a long check says how far it has got.
REPORT_SECONDS: Final = 5.0

#: Slot numbers and frame ids are kept in 31 bits; what a larger device has beyond 4 TiB is not
#: used.
MAX_SLOTS: Final = 1 << 30

#: For a descriptor: each transfer is EBADF.
_NOWHERE: Final = -1

GIVE: Final = "give a block device, or a regular file in an existing folder"
_NO_FOLDER: Final = "its folder does not exist"


class _Held(BadInput):
    """It is another's, even if it was not there a moment ago."""


class BackingFile(SlotMap):
    """A `Tier` over one file descriptor. Opening it may take seconds: the file is checked to be
    blank, and allocated."""

    def __init__(
        self, descriptor: int, path: Path, slot_count: int, frame_bytes: int, direct: bool, made: Path | None
    ) -> None:
        """`made` is the file that opening it made, if it did."""
        super().__init__(slot_count)
        self.path = path
        self.frame_bytes = frame_bytes
        self.direct = direct
        self._descriptor = descriptor
        self._made = made
        # Without O_DIRECT the page cache would take any write, and say later, to nobody, that it
        # failed.
        self.write_flags = 0 if direct else os.RWF_DSYNC

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        needed_bytes: int,
        new_bytes: int,
        frame_bytes: int,
        force: bool,
        max_slots: int = MAX_SLOTS,
        report: Callable[[str], None] = print,
        tell: Callable[[str], None] = print,
        go_on: Callable[[], None] = lambda: None,
        made: Callable[[Path], None] = lambda _: None,
    ) -> "BackingFile":
        """Open, lock, check and allocate `path`.

        A file that is new or empty is made `new_bytes` large, and its header; one that is not must
        have `needed_bytes` already (0, with overcommit: any size will do). Of a larger one
        `max_slots` frames are used. `report` is given warnings, `tell` how far something long has
        got, `go_on` is called whenever there is progress, and `made` is told of a file that was not
        there. Raises `BadInput` with the whole reason.
        """
        real = _real_path(path)
        is_new = not real.exists()
        if is_new and real.is_relative_to("/dev") and not real.is_relative_to("/dev/shm"):
            raise BadInput(f"backing={path}: there is no such device, and a file there would be in memory; {GIVE}")
        descriptor = _open(path)
        try:
            _lock(descriptor, path)
            if is_new:
                made(real)
            _refuse_other_users(descriptor, path)
            size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            progress = _progress(path, tell, go_on)
            if size_bytes == 0 and is_file:
                size_bytes = max(new_bytes, 16 * frame_bytes) + frame_bytes
            elif size_bytes < (wanted := max(needed_bytes, frame_bytes) + frame_bytes):
                raise BadInput(_too_small(path, size_bytes, wanted))
            elif not force:
                _refuse_foreign_content(descriptor, path, size_bytes, progress)
            if is_file:
                make_own(descriptor, path, go_on)
                allocate(descriptor, path, size_bytes, progress)
            header = header_of(frame_bytes)
            if os.pread(descriptor, frame_bytes, 0) != header:
                os.pwrite(descriptor, header, 0)
            is_far = is_file and is_remote(mount_of(descriptor).file_system)
            direct = not is_far and _try_direct(descriptor, frame_bytes)
            found = [trouble.reason for trouble in troubles(descriptor)]
        except BaseException as error:
            os.close(descriptor)
            if is_new and not isinstance(error, _Held):
                real.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise BadInput(f"backing={path}: {error.strerror}; {in_words(error) or GIVE}") from None
            raise
        if found:
            report(f"WARNING: backing={path} {', and '.join(found)}; give a disk of this machine's own")
        slot_count = min(size_bytes // frame_bytes - 1, max_slots, MAX_SLOTS)
        return cls(descriptor, path, slot_count, frame_bytes, direct, real if is_new else None)

    @classmethod
    def adopt(
        cls,
        descriptor: int | None,
        path: Path,
        slot_count: int,
        frame_bytes: int,
        *,
        report: Callable[[str], None] = print,
    ) -> "BackingFile":
        """Go on with what a predecessor has opened, whatever is found under its name by now: that
        may be another's. Nothing is checked: what is wrong with it shows in its reads and writes,
        and pages in RAM do not depend on it. All fail without a descriptor."""
        if descriptor is None:
            report(f"WARNING: backing={path}: has not been handed on; going on with what is in RAM")
            return cls(_NOWHERE, path, slot_count, frame_bytes, False, None)
        direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        return cls(descriptor, path, slot_count, frame_bytes, direct, None)

    def fileno(self) -> int:
        """The descriptor, for `adopt`."""
        return self._descriptor

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """One sequential write of all frames."""
        self._move("write", self._pwritev, first_slot, frames)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """One sequential read into all frames."""
        self._move("read", os.preadv, first_slot, frames)

    def _pwritev(self, descriptor: int, frames: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(descriptor, frames, offset, self.write_flags)

    def _move(self, what: str, call: Callable[..., int], first_slot: int, frames: Sequence[memoryview]) -> None:
        """All frames; after a short transfer the rest is asked for, which says why it was short."""
        moved = 0
        while moved < len(frames):
            done = call(self._descriptor, frames[moved:] if moved else frames, (first_slot + moved) * self.frame_bytes)
            if done < self.frame_bytes:
                why = "; it is shorter than it was" if what == "read" and not done else ""
                raise OSError(errno.EIO, f"short {what}: {done} bytes of slot {first_slot + moved}{why}")
            moved += done // self.frame_bytes

    def close(self) -> None:
        """Close the file and so give up its lock."""
        if self._descriptor != _NOWHERE:
            os.close(self._descriptor)

    def abandon(self) -> None:
        """Close it as if it had never been opened: a file that we made goes."""
        self.close()
        if self._made:
            self._made.unlink(missing_ok=True)


def _too_small(path: Path, size_bytes: int, wanted: int) -> str:
    return (
        f"backing={path}: too small: {size_bytes} bytes; what size= needs beyond the budget, and a header, "
        f"are {wanted}. Give a larger one, an empty file, or overcommit=yes"
    )


def _real_path(path: Path) -> Path:
    """Where a symbolic link leads, so that a refusal never removes the link itself."""
    try:
        real = path.resolve()
        real.exists()  # may be refused, too
    except (OSError, RuntimeError) as error:
        reason = why_not_opened(error, _NO_FOLDER) if isinstance(error, OSError) else "a loop of symbolic links"
        raise BadInput(f"backing={path}: {reason}; {GIVE}") from None
    return real


def _open(path: Path) -> int:
    """Made, if it is not there."""
    try:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if path.is_block_device() else os.O_CREAT)
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise BadInput(f"backing={path}: {why_not_opened(error, _NO_FOLDER)}; {in_words(error) or GIVE}") from None


def _lock(descriptor: int, path: Path) -> None:
    """A device is locked already, by how it was opened."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISBLK(mode):
        return
    if not stat.S_ISREG(mode):
        raise BadInput(f"backing={path}: neither a regular file nor a block device; {GIVE}")
    if not mode & 0o222:  # root could write to it all the same, but somebody meant it to be kept
        raise BadInput(f"backing={path}: is marked read-only; {GIVE}")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _Held(f"backing={path}: held by another server; give each server a backing file of its own") from None
    except OSError as error:
        raise BadInput(f"backing={path}: cannot be locked: {error.strerror}; {GIVE}") from None


def _refuse_other_users(descriptor: int, path: Path) -> None:
    try:
        user = used_otherwise(descriptor)
    except OSError as error:  # it has no size (a file of /proc)
        raise BadInput(f"backing={path}: {why_not_opened(error)}; {in_words(error) or GIVE}") from None
    if user:
        raise BadInput(f"backing={path}: {user}; give each server a backing of its own")


def _progress(path: Path, tell: Callable[[str], None], go_on: Callable[[], None]) -> Progress:
    """What says that there is progress, and from time to time how much."""
    said = time.monotonic()

    def progress(what: str, done: int, whole: int) -> None:
        nonlocal said
        go_on()
        if time.monotonic() > said + REPORT_SECONDS:
            said = time.monotonic()
            tell(f"backing={path}: {done * 100 // whole}% {what}")

    return progress


def _refuse_foreign_content(descriptor: int, path: Path, size_bytes: int, progress: Progress) -> None:
    """Raise `BadInput` if anything that is not ours and not zero is in the file."""
    if is_ours(descriptor):
        return
    blank = bytes(SCAN_BYTES)
    for start, stop in data_extents(descriptor, 0, size_bytes):
        for offset in range(start, stop, SCAN_BYTES):
            block = os.pread(descriptor, min(SCAN_BYTES, stop - offset), offset)
            if block != blank[: len(block)]:
                what = other_owner(descriptor) or "something that is not zcache's"
                inside = len(block) - len(block.lstrip(b"\0"))
                raise BadInput(
                    f"backing={path}: holds {what} (at byte {offset + inside}); "
                    "give another, or force=yes to overwrite all of it"
                )
            progress("looked at, blank so far", offset, size_bytes)


def _try_direct(descriptor: int, frame_bytes: int) -> bool:
    """Switch to O_DIRECT if a frame can be read and written that way. tmpfs, for one, may
    refuse."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        with mmap.mmap(-1, frame_bytes) as page, memoryview(page) as view:
            if os.preadv(descriptor, [view], 0) == frame_bytes and os.pwritev(descriptor, [view], 0) == frame_bytes:
                return True
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            return True  # that it fails is another matter: the warm-up sees to it
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return False
