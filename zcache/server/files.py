"""What a server has open: its backing, the disks of clean exports, and the engines that it knows.

The first server of a swap opens them; those after it are given what it has opened.
"""

import itertools
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from zcache.clean.disk_file import DiskFile
from zcache.clock import Clock
from zcache.errors import BadInput
from zcache.image.signs import Signs
from zcache.server.assembly import SPARE_BYTES, frames_below
from zcache.server.config import Config
from zcache.steps import Steps
from zcache.tiers.backing_file import BackingFile

if TYPE_CHECKING:
    from zcache.remote.engines import Engines


class Files:
    """Of one server; nothing is open at first. `report` is told what is worth a line in the log."""

    def __init__(self, config: Config, steps: Steps, report: Callable[[str], None]) -> None:
        self._config = config
        self._steps = steps
        self._report = report
        self.backing: BackingFile | None = None
        self.engines: Engines | None = None
        self.disks: list[DiskFile] = []

    def open(self) -> None:
        """By name. Raises `BadInput`; what is open by then is closed by `undo`."""
        config = self._config
        for export in config.clean:
            try:
                self.disks.append(DiskFile.open(export.path, export.read_only))
            except BadInput as error:
                raise BadInput(f"clean={export}: {error}; give a disk image or block device that is there") from None
        if config.backing:
            self.backing = BackingFile.open(
                config.backing,
                needed_bytes=0 if config.overcommit else config.below_bytes,
                new_bytes=config.below_bytes,
                frame_bytes=config.frame_bytes,
                force=config.force,
                max_slots=config.needed_frames + SPARE_BYTES // config.frame_bytes,
                report=self._report,
                tell=self._tell,
                go_on=self._steps.go_on,
                made=self._steps.made,
            )
            mode = config.backing.stat().st_mode
            if stat.S_ISREG(mode) and mode & (0o022 if config.encrypt else 0o066):
                self._report(
                    f"WARNING: backing={config.backing}: has mode {mode & 0o777:o}, so others may "
                    f"{'spoil' if config.encrypt else 'see or spoil'} what is swapped out; chmod 600"
                )

        if self.engines:
            self._steps.begin("asking the engines")
            self.engines.check(self._report)

    def look_up(self) -> None:
        """Where the engines are, while the name service can be asked. Raises `BadInput`; a
        successor goes on without those that are not found, and asks nobody who may wait for a page
        when there is no server."""
        if not self._config.remote:
            return
        from zcache.remote.engines import Engines  # locked in memory, where there are engines
        from zcache.remote.url import parse_url

        is_successor = self._config.is_succession
        urls = [parse_url(text, is_successor) for text in self._config.remote]
        copies = self._config.remote_copies
        self.engines = Engines(urls, copies, may_evict=copies == 1, clock=Clock())
        may_ask = not is_successor or Signs(self._config.image or 0).is_served()
        self.engines.resolve(is_successor, self._report, may_ask)

    def adopt(self, image: int, descriptors: Sequence[int]) -> None:
        """What another server of the same keeper had opened, in the same order, whatever has become
        of their names; `image` is the descriptor of what that server has left."""
        config = self._config
        if self.engines:
            self.engines.take_over()
        given: Iterator[int | None] = itertools.chain(descriptors, itertools.repeat(None))
        if config.backing:
            slot_count = frames_below(config, image) - config.remote_frames
            self.backing = BackingFile.adopt(
                next(given), config.backing, slot_count, config.frame_bytes, report=self._report
            )
        for export in config.clean:
            descriptor = next(given)
            if descriptor is None:
                self._report(f"WARNING: clean={export}: has not been handed on; it is empty, and fails")
            self.disks.append(DiskFile.adopt(descriptor))

    def descriptors(self) -> list[int]:
        """Of all of them, in the order in which they are handed on."""
        return [file.fileno() for file in (self.backing, *self.disks) if file]

    def undo(self) -> list[Callable[[], None]]:
        """The steps by which all is as if nothing had been opened; each may fail."""
        return [*([self.backing.abandon] if self.backing else []), *(file.close for file in self.disks)]

    def _tell(self, progress: str) -> None:
        """How far a step has got: in the log, and to whoever watches the start."""
        self._report(progress)
        self._steps.begin(progress)
