"""Ten minutes of it: threads that read and write a region of five times its limit, and a pager that
is killed every 30 seconds. With `-m thorough`; the seconds are $ZCACHE_SOAK_SECONDS, if that is
set."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.regions import MIB, needs_regions
from zcache.linux.process import share_bytes
from zcache.pager.region import Region

SECONDS = int(os.environ.get("ZCACHE_SOAK_SECONDS", "600"))

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.timeout(SECONDS + 120),
    needs_regions,
]

KILL_SECONDS = 30
THREADS = 4
LIMIT = 64 * MIB
SIZE = 5 * LIMIT
BUDGET = 96 * MIB
#: What keeper and pager may take beside the budget and the tables of the store.
OWN = 48 * MIB
LONGEST = 300_000


def data(rng: random.Random, length: int) -> bytes:
    """Pages of which some compress well, some ill, and some repeat a word."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(length)
    if kind == 1:
        return rng.randbytes(8) * (length // 8) + bytes(length % 8)
    piece = rng.randbytes(rng.randrange(200, 3000))
    return (piece + bytes(rng.randrange(1000)) + piece * 2) * (length // len(piece) + 1)


def test_nothing_differs_and_nobody_takes_more_than_its_own(rng: random.Random, tmp_path: Path) -> None:
    problems: list[BaseException] = []
    ended = threading.Event()
    operations = [0] * THREADS
    shadow = bytearray(SIZE)
    with Region(SIZE, LIMIT, budget=str(BUDGET), backing=tmp_path / "backing", overcommit="yes") as region:

        def work(number: int, seed: float) -> None:
            own = random.Random(seed)
            first = number * SIZE // THREADS
            stop = first + SIZE // THREADS
            try:
                while not ended.is_set():
                    length = own.choice([1, 8, 4096, own.randrange(1, 70_000), own.randrange(1, LONGEST)])
                    at = own.randrange(first, stop - length)
                    if own.random() < 0.4:
                        written = data(own, length)[:length]
                        region.buffer[at : at + length] = written
                        shadow[at : at + length] = written
                    else:
                        assert region.buffer[at : at + length] == shadow[at : at + length], (at, length)
                    operations[number] += 1
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=work, args=(number, rng.random())) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        begin = killed = time.monotonic()
        status = region.status()
        kills = most_resident = most_taken = 0
        while time.monotonic() < begin + SECONDS and not problems:
            time.sleep(0.2)
            most_resident = max(most_resident, region.resident_bytes)
            most_taken = max(most_taken, share_bytes(status["keeper_pid"]) + share_bytes(status["pid"]))
            if time.monotonic() > killed + KILL_SECONDS:
                os.kill(status["pid"], signal.SIGKILL)
                kills, killed = kills + 1, time.monotonic()
                status = region.status()
        ended.set()
        for thread in threads:
            thread.join()
        assert not problems, problems
        assert region.buffer == shadow
        assert region.check()["removed_pages"] == 0
        status = region.status()
    print(f"{sum(operations)} operations, {kills} kills, {status['faults']} faults of the last pager")
    print(f"at most {most_resident >> 20} MiB resident, {most_taken >> 20} MiB taken by keeper and pager")
    assert most_resident <= LIMIT
    assert most_taken <= BUDGET + OWN
    assert kills >= (SECONDS - 10) // (KILL_SECONDS + 1) and min(operations) > 0
