"""What one engine takes: bytes of memory for each byte that it keeps, and CPU for each frame.

Memory by the engine's own word (MEMORY USAGE of a key; used_memory, which is what its maxmemory
counts) and by the kernel's (RSS). The last is more: an allocator that is cache-oblivious, as
Debian's shared jemalloc is, adds a page to each large value, and does not count it. The tier keeps
the last 16 bytes of a frame itself: a whole one falls into that allocator's next class.

CPU is what one engine can carry: it runs commands in one thread. Frames a second are those of a
processor that does nothing else, by the engine's CPU time: its clients had the other one.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zcache.bench.remote.engines import ANSWER_SECONDS, Server, engine
from zcache.bench.remote.reading import new_frames
from zcache.bench.remote.sources import keys_of
from zcache.bench.report import Figure
from zcache.linux.process import status_bytes
from zcache.remote.peer import fields_of
from zcache.remote.resp import MAX_IN_FLIGHT, Connection
from zcache.remote.tables import TAIL_BYTES
from zcache.remote.url import Address

#: Frames of the log allocator, and of zbud.
FRAMES_BYTES: Final = (65_536, 4_096)
#: In values of each size: enough that what an empty engine has does not count.
_KEPT_BYTES: Final = 64 << 20
#: Values that are read, and written over.
_WORKED: Final = 256


def memory(folder: Path) -> list[dict[str, Figure]]:
    """Rows: whole frames, and frames without their end, each in an engine of its own."""
    return [
        _paid(folder, frame_bytes, value_bytes)
        for frame_bytes in FRAMES_BYTES
        for value_bytes in (frame_bytes, frame_bytes - TAIL_BYTES)
    ]


def _paid(folder: Path, frame_bytes: int, value_bytes: int) -> dict[str, Figure]:
    count = _KEPT_BYTES // frame_bytes
    place = folder / f"memory-{value_bytes}"
    place.mkdir()
    with engine(place) as server, contextlib.closing(server.connect()) as connection:
        before, used_before = status_bytes(server.pid, "VmRSS"), _used_bytes(connection)
        value = memoryview(os.urandom(value_bytes))
        for first in range(1, count + 1, MAX_IN_FLIGHT):
            _set(connection, keys_of(first, MAX_IN_FLIGHT), [value] * MAX_IN_FLIGHT)
        usage = connection.call("MEMORY", "USAGE", keys_of(count // 2, 1)[0], seconds=ANSWER_SECONDS)
        assert isinstance(usage, int), usage
        used = (_used_bytes(connection) - used_before) / count
        rss = (status_bytes(server.pid, "VmRSS") - before) / count
    return {
        "frame, bytes": frame_bytes,
        "value, bytes": value_bytes,
        "MEMORY USAGE": usage,
        "used_memory": round(used),
        "RSS": round(rss),
        "paid for each byte kept, by used_memory": used / value_bytes,
        "by RSS": rss / value_bytes,
    }


def _used_bytes(connection: Connection) -> int:
    """What counts towards maxmemory."""
    return int(fields_of(connection.call("INFO", "memory", seconds=ANSWER_SECONDS))["used_memory"])


def cpu(folder: Path, seconds: float) -> list[dict[str, Figure]]:
    """Rows: reading, writing (and removing what was written before), and copying from one engine to
    another, in batches; frames of 64 KiB over loopback."""
    for name in ("one", "other"):
        (folder / name).mkdir()
    with engine(folder / "one") as one, engine(folder / "other") as other, contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(contextlib.closing(_by_tcp(server))) for server in (one, other))
        frames = [frame[:-TAIL_BYTES] for frame in new_frames(MAX_IN_FLIGHT)]
        batches = [keys_of(start, MAX_IN_FLIGHT) for start in range(1, _WORKED, MAX_IN_FLIGHT)]
        for keys in batches:
            _set(first, keys, frames)

        def get(keys: Sequence[bytes]) -> None:
            assert all(first.get_all(keys, frames, ANSWER_SECONDS))

        def write(keys: Sequence[bytes]) -> None:
            first.unlink_all(keys, ANSWER_SECONDS)
            _set(first, keys, frames)

        def copy(keys: Sequence[bytes]) -> None:
            get(keys)
            _set(second, keys, frames)

        works = {"read": get, "written, and one removed": write, "copied to another engine": copy}
        return [_cost(name, work, batches, seconds, (one, other)) for name, work in works.items()]


def _by_tcp(server: Server) -> Connection:
    address: Address = server.addresses[1]
    return Connection(address, seconds=ANSWER_SECONDS)


def _set(connection: Connection, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
    refusals = connection.set_all(keys, [(value,) for value in values], ANSWER_SECONDS)
    assert not any(refusals), refusals


def _cost(
    name: str,
    work: Callable[[Sequence[bytes]], None],
    batches: Sequence[Sequence[bytes]],
    seconds: float,
    servers: Sequence[Server],
) -> dict[str, Figure]:
    before = [server.cpu_seconds() for server in servers]
    own = time.process_time()
    begin = time.monotonic()
    count = 0
    while time.monotonic() < begin + seconds:
        for keys in batches:
            work(keys)
            count += len(keys)
    took = time.monotonic() - begin
    engine_seconds = sum(server.cpu_seconds() - start for server, start in zip(servers, before, strict=True)) / count
    return {
        "frames": name,
        "engine's CPU, us": engine_seconds * 1e6,
        "frames a second of its CPU": 1 / engine_seconds,
        "frames a second here": count / took,
        "own CPU, us": (time.process_time() - own) / count * 1e6,
    }
