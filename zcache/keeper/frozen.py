"""The record of the control groups that `zcache sleep pre` has frozen, and how they are thawed.

It lies in the state folder of each swap area that is on, and is written before anything is frozen.
So nothing stays frozen when `zcache sleep` is killed: `post` thaws what the record names, swap-down
does, and so does the keeper when the deadline in it has passed (`Forgotten`). Only what we froze is
named, and only that is thawed. (A keeper of before there was this thaws nothing. Who was parked,
control_groups.py, is thawed where it is, and moved back by `post`.)

The keeper reads the record as soon as it is there, while its text is certainly in memory, and later
only writes to the groups' files, which are the kernel's. This file imports nothing that the keeper
has not loaded.
"""

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: From the record's writing, in seconds that the machine is awake: the bounds of `pre` (sleep.py),
#: then the time that the kernel takes to write dirty pages to their disks and to freeze the rest,
#: 20 s at most. A guess: a suspend that takes longer to begin is merely unprotected again.
DEADLINE_SECONDS: Final = 180.0
_READ_BYTES: Final = 1 << 16


def write(record: Path, groups: Iterable[Path], seconds: float = DEADLINE_SECONDS) -> None:
    """Replaced at once: the time on the monotonic clock by which they are thawed, then their
    folders."""
    words = [f"{time.monotonic() + seconds:.1f}".encode(), *(os.fsencode(group) for group in groups)]
    part = record.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        text = memoryview(b"\0".join(words))
        while text:
            text = text[os.write(descriptor, text) :]
    finally:
        os.close(descriptor)
    part.replace(record)


def read(record: Path) -> tuple[float, list[Path]] | None:
    """The deadline and the groups; None without a record, or with one that nobody has written
    whole."""
    try:
        descriptor = os.open(record, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = b"".join(iter(lambda: os.read(descriptor, _READ_BYTES), b""))
        deadline, *groups = text.split(b"\0")
        return float(deadline), [Path(os.fsdecode(group)) for group in groups]
    except (OSError, ValueError):  # OSError: it was swapped out, and is lost
        return None
    finally:
        os.close(descriptor)


def thaw(groups: Iterable[Path]) -> None:
    """A group that is gone by now needs no thawing."""
    for group in groups:
        with contextlib.suppress(OSError):
            descriptor = os.open(group / "cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, b"0")
            finally:
                os.close(descriptor)


class Forgotten:
    """What was frozen, as the keeper sees it: `look` again and again thaws it when nobody did in
    time."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._version: tuple[int, int] | None = None
        self._deadline_seconds = 0.0
        self._groups: list[Path] = []

    def look(self) -> int:
        """How many groups were thawed now. One system call, when nothing is frozen."""
        version = self._look_up()
        if version is None:
            self._version = None
            return 0
        if version != self._version:
            self._version = version
            self._deadline_seconds, self._groups = read(self._record) or (0.0, [])
        if time.monotonic() < self._deadline_seconds:
            return 0
        thaw(self._groups)
        if self._look_up() == version:  # not that of a `pre` which has begun meanwhile
            self._record.unlink(missing_ok=True)
        return len(self._groups)

    def _look_up(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._record)  # noqa: PTH116 - ten times a second, and without an object for each
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
