"""Where a server's time goes, in a file of a few words that it writes and the benchmark reads."""

import mmap
from pathlib import Path
from typing import Final

#: Names the file, for `timed_plugin.py`.
VARIABLE: Final = "ZCACHE_TIMES"

CALLBACK: Final = 0  # nanoseconds
CODEC: Final = 1  # nanoseconds, of those in callbacks
REQUESTS: Final = 2
_BYTES: Final = 4096


class Times:
    """The words of one server; the file is made if it is new."""

    def __init__(self, path: Path) -> None:
        with path.open("ab") as file:
            file.truncate(_BYTES)
        with path.open("r+b") as file:
            self.words = memoryview(mmap.mmap(file.fileno(), _BYTES)).cast("Q")

    def look(self) -> tuple[int, int, int]:
        """Nanoseconds in callbacks, in the codec, and requests, so far."""
        callback, codec, requests = self.words[:3].tolist()
        return callback, codec, requests
