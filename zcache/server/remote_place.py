"""The engines of one server: tried at its start, used and looked after while it serves, and left
with nothing there at its end.

`zcache.remote` has all else. Neither is imported without `remote=`.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from zcache.errors import EnvironmentProblem, PageDamaged
from zcache.image.image import SECRET_BYTES, Image
from zcache.remote.reading import LAST_SECONDS
from zcache.remote.remote import Remote
from zcache.seals import Seal
from zcache.server.config import Config
from zcache.server.files import Files
from zcache.server.upkeep import Upkeep
from zcache.server.warm_up import warm_up
from zcache.sizes import human
from zcache.steps import Steps
from zcache.tiers import Tier

#: Between two turns of what looks after engines.
TURN_SECONDS: Final = 0.05
#: For what is there to be removed: at the end, and after a trial.
FAREWELL_SECONDS: Final = 10.0
TRIAL_SECONDS: Final = 2.0


class RemotePlace:
    """Of a server with these `files`, whose engines are looked up before anything is done here.
    `report` is told what is worth a line in the log."""

    def __init__(self, config: Config, files: Files, report: Callable[[str], None]) -> None:
        self._config = config
        self._files = files
        self._report = report
        self._remote: Remote | None = None  # once there is a store

    @property
    def ports(self) -> set[int]:
        """That are connected to."""
        return self._files.engines.ports if self._files.engines else set()

    @property
    def is_anywhere(self) -> bool:
        """Whether any port may be an engine's by and by: a Cluster's."""
        return bool(self._files.engines and self._files.engines.is_cluster)

    def has_made(self, connection: socket.socket) -> bool:
        """Whether a connection of this process is to an engine. Raises `OSError` if it has
        ended."""
        engines = self._files.engines
        return engines is not None and engines.is_at(connection.getpeername())

    def try_out(self, seal: Seal, steps: Steps, may_refuse: bool) -> None:
        """Run all that goes to engines and comes back once, under a name of its own, which leaves
        nothing there. Raises `EnvironmentProblem` if what was sent does not come back, or there is
        not the room that is promised; but whoever may not refuse goes on without."""
        steps.begin("trying the engines")
        config = self._config
        remote = self._make(None, os.urandom(SECRET_BYTES), lambda _: None)
        remote.tier.reading.hedge_seconds = LAST_SECONDS  # a slow one is no reason to refuse, and nobody connects again
        try:
            warm_up(config.codec, config.allocator, config.recompress, remote.tier, seal)
            remote.mender.work()
            room_frames = remote.tier.capacity_slots
        except PageDamaged as error:
            if may_refuse:
                raise EnvironmentProblem(
                    f"remote=: what is sent to the engines does not come back ({error}); see their logs and ACLs"
                ) from None
            return
        finally:
            remote.mender.farewell(TRIAL_SECONDS)
            remote.copies.close()
        if may_refuse and not config.overcommit and room_frames < config.remote_frames:
            raise EnvironmentProblem(
                f"remote_budget={config.remote_bytes}: the engines have room for {room_frames * config.frame_bytes} "
                "bytes of frames, each twice, by their maxmemory and quotas; "
                "give less, have more room made there, or overcommit=yes"
            )

    def make(self, image: Image | None, secret: bytes) -> list[Tier]:
        """Connect. Returns the tiers below RAM, warmest first."""
        self._remote = remote = self._make(image, secret, self._report)
        backing = self._files.backing
        return [remote.tier, backing] if backing and self._config.remote_frames else [remote.tier]

    def upkeep(self) -> Upkeep:
        """What looks after the engines."""
        assert self._remote
        return Upkeep("zcache-remote", self._remote.mender.work, seconds=TURN_SECONDS)

    def status(self) -> dict[str, Any]:
        """Figures."""
        return self._remote.status() if self._remote else {}

    def troubles(self) -> list[str]:
        """What is wrong with them, in words."""
        remote, config = self._remote, self._config
        if not remote:
            return []
        found = remote.mender.troubles()
        if remote.mender.is_short and not config.overcommit:  # with which nothing was promised
            room = human(remote.tier.promised_room() * config.frame_bytes)
            found.append(
                f"engines have room for {room} of the {human(config.remote_bytes)} of frames that remote_budget "
                "promises, each twice: raise their maxmemory and quotas, or take something else out of them "
                "(`zcache remote status`)"
            )
        return found

    def farewell(self) -> None:
        """The swap is over, and so are writes: nothing stays there, as far as that can be had."""
        if self._remote:
            with contextlib.suppress(OSError):
                self._remote.mender.farewell(FAREWELL_SECONDS)

    def _make(self, image: Image | None, secret: bytes, report: Callable[[str], None]) -> Remote:
        engines, config = self._files.engines, self._config
        assert engines
        engines.refresh()  # of a Cluster, where nobody has asked for its map yet
        return Remote(
            engines,
            config.remote_bytes // config.frame_bytes,
            config.frame_bytes,
            self._files.backing,
            image,
            secret,
            is_front=not config.remote_frames,
            report=report,
        )
