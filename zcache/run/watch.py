"""What a job takes: memory of its processes, and of the store, as far as somebody looks."""

import contextlib
import time
from collections import Counter
from pathlib import Path
from threading import Event
from typing import Any, Final

from zcache.control.ask import ask
from zcache.errors import ZcacheError
from zcache.linux.process import family, status_bytes
from zcache.pages.entry import PAGE_BYTES

#: Between two looks at the job's processes; and at the store.
LOOK_SECONDS: Final = 0.2
STORE_SECONDS: Final = 1.0
#: Of what a store says: those that begin with it.
COUNTERS: Final = ("puts", "gets", "failed_puts", "region_faults")


class Watch:
    """Of the process `pid` and all that come of it, and of the store that answers at `control`."""

    def __init__(self, pid: int, control: Path) -> None:
        self._pid, self._control = pid, control
        self.outside_bytes = 0  # memory of their own, at most: not of the region
        self.store: dict[str, Any] = {}  # the last that it said
        self._before: Counter[str] = Counter()  # what pagers had counted that were replaced
        self.ram_bytes = self.below_bytes = 0  # what the store took, at most
        self.array_bytes = 0  # of arrays, at most

    def until(self, ended: Event) -> None:
        """Look, again and again."""
        look_at_store = 0.0
        while not ended.wait(LOOK_SECONDS):
            self.outside_bytes = max(self.outside_bytes, sum(status_bytes(pid, "RssAnon") for pid in family(self._pid)))
            if time.monotonic() > look_at_store:
                self.look_at_store()
                look_at_store = time.monotonic() + STORE_SECONDS

    def count(self, name: str) -> int:
        """One of `COUNTERS`, of all pagers that there were."""
        return self._before[name] + int(self.store.get(name, 0))

    def look_at_store(self) -> None:
        """Now, and once more at the end."""
        with contextlib.suppress(ZcacheError):  # it is being replaced
            said = ask(self._control, "status")
            if said["server_number"] != self.store.get("server_number", said["server_number"]):
                self._before.update({name: self.store[name] for name in COUNTERS})
            self.store = said
            frame_bytes = self.store["frame_bytes"]
            self.ram_bytes = max(self.ram_bytes, self.store["resident_frames"] * frame_bytes)
            pages = sum(region["resident_pages"] + region["stored_region_pages"] for region in self.store["regions"])
            self.array_bytes = max(self.array_bytes, pages * PAGE_BYTES)
            self.below_bytes = max(self.below_bytes, self.store["backing_frames"] * frame_bytes)
