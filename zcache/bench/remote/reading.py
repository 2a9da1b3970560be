"""Cold frames read at random, by threads, for some seconds: how long each took, how many there
were, and whose CPU it was."""

import os
import random
import threading
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from zcache.bench.remote.engines import Server
from zcache.bench.remote.sources import FRAME_BYTES, Source
from zcache.linux.memory import anonymous_memory, populate

#: Frames in one write when a source is filled.
_FILLED: Final = 16
_MARK_BYTES: Final = 8


class Way(NamedTuple):
    """So many threads, each of which asks for so many frames in a row at once."""

    threads: int
    batch: int

    @property
    def name(self) -> str:
        if self.threads * self.batch == 1:
            return "1"
        return f"{self.threads} threads" if self.threads > 1 else f"a batch of {self.batch}"


class Found(NamedTuple):
    """Times of requests (each is as many frames as its batch), and of CPU for each frame."""

    p50_us: float
    p99_us: float
    longest_us: float
    failed: float
    frames_per_second: float
    own_us: float
    engine_us: float
    relay_us: float


def fill(source: Source, slot_count: int) -> None:
    """Noise, as what is encrypted is; each frame begins with the number of its slot."""
    frames = new_frames(_FILLED)
    for first in range(1, slot_count + 1, _FILLED):
        some = frames[: slot_count + 1 - first]
        for slot, frame in enumerate(some, first):
            frame[:] = os.urandom(FRAME_BYTES)
            frame[:_MARK_BYTES] = slot.to_bytes(_MARK_BYTES, "little")
        source.write(first, some)


def new_frames(count: int) -> list[memoryview]:
    """Buffers that begin on a page, which O_DIRECT wants."""
    memory = memoryview(anonymous_memory(count * FRAME_BYTES))
    populate(memory)
    return [memory[start : start + FRAME_BYTES] for start in range(0, len(memory), FRAME_BYTES)]


def read(source: Source, slot_count: int, way: Way, seconds: float, seed: int, servers: Sequence[Server]) -> Found:
    """The source was filled. Each frame is looked at: is it the one that was asked for? `servers`
    are engine and relay, if there are any."""
    times: list[list[float]] = [[] for _ in range(way.threads)]
    begin = time.perf_counter()

    def run(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        frames = new_frames(way.batch)
        while (asked := time.perf_counter()) < begin + seconds or not times[number]:
            first = rng.randint(1, slot_count + 1 - way.batch)
            try:
                source.read(first, frames)
            except OSError:
                failed.append(first)
                continue
            finally:
                times[number].append(time.perf_counter() - asked)
            for slot, frame in enumerate(frames, first):
                if int.from_bytes(frame[:_MARK_BYTES], "little") != slot:
                    wrong.append(slot)

    wrong: list[int] = []
    failed: list[int] = []
    threads = [threading.Thread(target=run, args=(number,)) for number in range(way.threads)]
    before = [time.process_time(), *(server.cpu_seconds() for server in servers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    after = [time.process_time(), *(server.cpu_seconds() for server in servers)]
    assert not wrong, f"other frames than those asked for came from slots {wrong[:8]}"
    every = sorted(each for some in times for each in some)
    count = (len(every) - len(failed)) * way.batch
    cpu = [(stop - start) / max(count, 1) * 1e6 for start, stop in zip(before, after, strict=True)]
    own_us, engine_us, relay_us = [*cpu, 0.0, 0.0][:3]
    p50_us, p99_us = (every[int(len(every) * share)] * 1e6 for share in (0.5, 0.99))
    return Found(p50_us, p99_us, every[-1] * 1e6, len(failed), count / took, own_us, engine_us, relay_us)
