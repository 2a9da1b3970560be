"""How fast second copies are made again, by one machine in spare time: two engines have each frame,
one of them loses all, and the mender works as it does in a server.

What it is for is the time in which a second death loses pages. The delay of a network is between
the machine and both engines.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zcache.bench.remote.engines import ANSWER_SECONDS, Server, engine, relay_adding
from zcache.bench.remote.reading import new_frames
from zcache.bench.remote.sources import FRAME_BYTES
from zcache.bench.report import Figure
from zcache.clock import Clock
from zcache.errors import EnvironmentProblem
from zcache.image.image import SECRET_BYTES
from zcache.remote.engines import Engines
from zcache.remote.remote import Remote
from zcache.remote.url import parse_url
from zcache.server.remote_place import TURN_SECONDS

#: Of a flight.
_BATCH_FRAMES: Final = 8
#: For all of it.
MOST_SECONDS: Final = 300.0


def measure(folder: Path, frame_count: int, round_trips_seconds: Sequence[float]) -> list[dict[str, Figure]]:
    """Rows: over loopback, and with each of these added to a round trip."""
    rows = []
    with contextlib.ExitStack() as stack:
        servers = []
        for name in ("kept", "emptied"):
            (folder / name).mkdir()
            servers.append(stack.enter_context(engine(folder / name)))
        ports = [int(server.addresses[1].sockaddr[1]) for server in servers]
        rows.append(_row("loopback", servers, ports, frame_count))
        for seconds in round_trips_seconds:
            with contextlib.ExitStack() as relays:
                ways = [relays.enter_context(relay_adding(folder, port, seconds)) for port in ports]
                through = [int(way.server.addresses[0].sockaddr[1]) for way in ways]
                rows.append(_row(f"{seconds * 1000:g} ms", servers, through, frame_count))
    return rows


def _row(place: str, servers: Sequence[Server], ports: Sequence[int], frame_count: int) -> dict[str, Figure]:
    """The second of these servers is emptied."""
    engines = Engines([parse_url(f"redis://127.0.0.1:{port}") for port in ports], 2, False, Clock())
    engines.resolve(False, lambda _: None)
    engines.check(lambda _: None)
    secret = os.urandom(SECRET_BYTES)
    remote = Remote(engines, frame_count, FRAME_BYTES, None, None, secret, is_front=False, report=lambda _: None)
    try:
        _fill(remote, frame_count)
        with contextlib.closing(servers[1].connect()) as connection:
            connection.call("FLUSHALL", seconds=ANSWER_SECONDS)
        # Until it is noticed; the mender begins to copy in its next turn.
        _work(remote, lambda: remote.tier.missing_copies() > 0)
        before, begin = time.process_time(), time.monotonic()
        _work(remote, lambda: remote.tier.missing_copies() <= 0)
        took = time.monotonic() - begin
        count = remote.copies.counters.remirrored_frames
        return {
            "to the engines": place,
            "frames": count,
            "frames a second": count / took,
            "MiB a second": count * FRAME_BYTES / took / (1 << 20),
            "own CPU, us": (time.process_time() - before) / count * 1e6,
        }
    finally:
        remote.mender.farewell(ANSWER_SECONDS)
        remote.tier.close()


def _fill(remote: Remote, frame_count: int) -> None:
    frames = new_frames(_BATCH_FRAMES)
    while remote.tier.used_slots < frame_count:
        for frame in frames:
            frame[:8] = os.urandom(8)
        first, count = remote.tier.reserve(min(_BATCH_FRAMES, frame_count - remote.tier.used_slots))
        remote.tier.write(first, frames[:count])


def _work(remote: Remote, until: Callable[[], bool]) -> None:
    """As the server's thread does."""
    ends = time.monotonic() + MOST_SECONDS
    while not until():
        remote.mender.work()
        if time.monotonic() > ends:
            raise EnvironmentProblem(f"not within {MOST_SECONDS:.0f} s: {'; '.join(remote.mender.troubles())}")
        time.sleep(TURN_SECONDS)
