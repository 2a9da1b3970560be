"""What a job takes: memory of its processes, and of the store, as far as somebody looks."""

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from threading import Event
from typing import Any, Final

from zcache.control.ask import ask
from zcache.errors import ZcacheError

#: Between two looks at the job's processes; and at the store.
LOOK_SECONDS: Final = 0.2
STORE_SECONDS: Final = 1.0


class Watch:
    """Of the process `pid` and all that come of it, and of the store that answers at `control`."""

    def __init__(self, pid: int, control: Path) -> None:
        self._pid, self._control = pid, control
        self.outside_bytes = 0  # memory of their own, at most: not of the region
        self.store: dict[str, Any] = {}  # the last that it said
        self.ram_bytes = self.below_bytes = 0  # what the store took, at most
        self.array_bytes = 0  # of arrays, at most

    def until(self, ended: Event) -> None:
        """Look, again and again."""
        look_at_store = 0.0
        while not ended.wait(LOOK_SECONDS):
            self.outside_bytes = max(self.outside_bytes, sum(map(anonymous_bytes, family(self._pid))))
            if time.monotonic() > look_at_store:
                self.look_at_store()
                look_at_store = time.monotonic() + STORE_SECONDS

    def look_at_store(self) -> None:
        """Now, and once more at the end."""
        with contextlib.suppress(ZcacheError):  # it is being replaced
            self.store = ask(self._control, "status")
            frame_bytes = self.store["frame_bytes"]
            self.ram_bytes = max(self.ram_bytes, self.store["resident_frames"] * frame_bytes)
            pages = sum(region["resident_pages"] + region["stored_region_pages"] for region in self.store["regions"])
            self.array_bytes = max(self.array_bytes, pages * 4096)
            self.below_bytes = max(self.below_bytes, self.store["backing_frames"] * frame_bytes)


def family(pid: int) -> Iterable[int]:
    """A process, and all that come of it and have not been left to others."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                yield from family(int(child))


def anonymous_bytes(pid: int) -> int:
    """What a process has in RAM that no file and no shared memory is; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:"))
