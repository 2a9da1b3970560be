"""A record in a file of what was changed on this machine, and what it was before: read and written
by one at a time, and there for as long as anything is noted in it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from zcache.errors import SwapError

Held = TypeVar("Held")


@contextlib.contextmanager
def locked(
    record: Path, decode: Callable[[bytes], Held], new: Callable[[], Held], advice: str
) -> Iterator[tuple[Held, Callable[[], None]]]:
    """What is noted, and what writes it; made by `new` if it is not there. `decode` raises an error
    of Python's own for what is no record: then `SwapError` says what to do by hand."""
    while True:
        descriptor = os.open(record, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(descriptor), record.stat()):
                    continue
            except FileNotFoundError:
                continue  # its last holder has removed it while we waited
            try:
                text = os.pread(descriptor, 1 << 20, 0).partition(b"\n")[0]
                held = decode(text) if text else new()
            except (OSError, ValueError, TypeError, RecursionError) as error:  # OSError: swapped out, and lost
                raise SwapError(f"{record} is damaged ({str(error)!a}); remove it, and {advice}") from None

            def save(descriptor: int = descriptor, held: Held = held) -> None:
                # The first line is what counts: whoever is killed between the two calls leaves a
                # longer text's rest.
                written = os.pwrite(descriptor, json.dumps(vars(held)).encode() + b"\n", 0)
                os.ftruncate(descriptor, written)

            yield held, save
            return
        finally:
            os.close(descriptor)
