"""A pager that is killed: what a client sees of it is a fault that takes longer."""

import json
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.regions import MIB, damaged, needs_regions, run, with_pagers_that
from zcache.linux import userfaultfd
from zcache.pager.entrance import Newcomer
from zcache.pager.keeper import HOPELESS, Keeper
from zcache.pager.region import Region
from zcache.pager.region_file import new_memfd

pytestmark = needs_regions

KILLS = 10


def kill(region: Region) -> int:
    """Its pager; which that was."""
    pid: int = region.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def under_load(region: Region, rng: random.Random, work: Callable[[random.Random, int, int], None]) -> None:
    """Two threads, each in a half of the region, while the pager is killed again and again."""
    problems: list[BaseException] = []
    ended = threading.Event()

    def run_one(seed: float, first: int, stop: int) -> None:
        own = random.Random(seed)
        try:
            while not ended.is_set():
                work(own, first, stop)
        except BaseException as problem:
            problems.append(problem)

    half = len(region) // 2
    threads = [threading.Thread(target=run_one, args=(rng.random(), at, at + half)) for at in (0, half)]
    for thread in threads:
        thread.start()
    killed = set()
    for _ in range(KILLS):
        time.sleep(0.01 + rng.random() * 0.3)  # by then none answers that was killed
        killed.add(kill(region))
    time.sleep(0.3)
    ended.set()
    for thread in threads:
        thread.join()
    assert not problems and len(killed) == KILLS
    assert region.check()["removed_pages"] == 0


@pytest.mark.parametrize(
    "parameters", [{}, {"budget": "2M", "backing": "backing"}, {"allocator": "zbud", "codec": "zstd"}], ids=str
)
def test_killed_ten_times_under_load_nothing_is_lost(
    rng: random.Random, tmp_path: Path, parameters: dict[str, Any]
) -> None:
    given = dict(parameters)
    if "backing" in given:
        given["backing"] = tmp_path / given["backing"]
    size = 12 * MIB
    with Region(size, 2 * MIB, **given) as region:
        shadow = bytearray(size)

        def work(own: random.Random, first: int, stop: int) -> None:
            at = own.randrange(first, stop - 20_000)
            length = own.randrange(1, 20_000)
            if own.random() < 0.5:
                data = (own.randbytes(1500) * 14)[:length]
                region.buffer[at : at + length] = data
                shadow[at : at + length] = data
            else:
                assert region.buffer[at : at + length] == shadow[at : at + length]

        under_load(region, rng, work)
        assert region.buffer == shadow
        assert region.resident_bytes <= 2 * MIB


def test_what_is_forgotten_meanwhile_is_zeros_and_stays_what_is_written_then(rng: random.Random) -> None:
    """A request that is asked twice is not done twice."""
    with Region(16 * MIB, 2 * MIB) as region:

        def work(own: random.Random, first: int, stop: int) -> None:
            at = own.randrange(first, stop - 64 * 4096) // 4096 * 4096
            length = own.randrange(1, 64) * 4096
            region.advise(mmap.MADV_DONTNEED, at, length)
            assert region.buffer[at : at + length] == bytes(length)
            data = own.randbytes(4096) * (length // 4096)
            region.buffer[at : at + length] = data
            assert region.buffer[at : at + length] == data

        under_load(region, rng, work)


def test_arrays_that_are_made_and_freed_meanwhile(rng: random.Random) -> None:
    """By NumPy's hook, which asks in C."""
    numpy = pytest.importorskip("numpy")
    with Region(24 * MIB, 2 * MIB) as region:

        def work(own: random.Random, _first: int, _stop: int) -> None:
            with region.numpy("64K"):
                zeros = numpy.zeros(own.randrange(1 << 16, 1 << 18), "u8")
                assert not zeros.any()
                zeros += 7
                other = zeros * 2
            assert int(other.sum()) == 14 * len(zeros)

        under_load(region, rng, work)
        assert region.numpy_bytes[0] == 0 < region.numpy_bytes[1]


def test_pages_that_cannot_be_had_are_known_to_the_next_pager(tmp_path: Path) -> None:
    """They can be forgotten then, and are zeros."""
    done = run(
        "import json, mmap\n" + damaged(tmp_path / "backing") + "read, write = os.pipe()\n"
        "lost = []\n"
        "for at in range(0, len(region), 4096):\n"
        "    try:\n"
        "        os.write(write, region.buffer[at:at + 4096])\n"
        "        assert os.read(read, 4096) == random.Random(at).randbytes(4096), at\n"
        "    except OSError:\n"
        "        lost.append(at)\n"
        "os.kill(region.status()['pid'], signal.SIGKILL)\n"
        "for at in lost:\n"
        "    region.advise(mmap.MADV_DONTNEED, at, 4096)\n"
        "    assert region.buffer[at:at + 4096] == bytes(4096)\n"
        "    region.buffer[at:at + 4096] = b'x' * 4096\n"
        "    assert region.buffer[at:at + 4096] == b'x' * 4096\n"
        "print(json.dumps(len(lost)))\n"
    )
    assert done.returncode == 0, done
    assert json.loads(done.stdout) > 100


def held_region(keeper: Keeper) -> socket.socket:
    """One that it holds; the end at which is seen that it does not any more."""
    descriptor = userfaultfd.open_descriptor()
    userfaultfd.handshake(descriptor, 0)
    client, forgetting = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, life = socket.socketpair()
    words = {"start": 1 << 40, "size": 8 * MIB, "limit": MIB}
    given = [client.detach(), descriptor, new_memfd(8 * MIB), forgetting.detach(), life.detach()]
    keeper.add(Newcomer(os.getpid(), words, given))
    return ours


@pytest.mark.parametrize(
    ("pager", "why"),
    [
        ([sys.executable, "-c", "import sys; sys.exit(3)"], "has died (status 3)"),
        (["/nowhere/python"], "cannot be started: No such file or directory"),
    ],
    ids=["ends", "cannot start"],
)
def test_a_keeper_that_gives_up_lets_go_of_all_regions(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], pager: list[str], why: str
) -> None:
    """Or whoever waits for a page would wait as long as the keeper's process lives."""
    monkeypatch.setattr("zcache.pager.keeper.PAGER", pager)
    keeper = Keeper(8 * MIB, {})
    with held_region(keeper) as life:
        assert why in keeper.run()
        assert life.recv(1) == b"" and keeper.region_count == 0
    assert capfd.readouterr().err.count(f"the pager {why}: the next one goes on") == HOPELESS - 1


def test_a_region_that_cannot_begin_is_refused_in_a_line() -> None:
    """The threads of a control group are used up, say."""
    done = run(
        with_pagers_that(
            "from zcache.errors import EnvironmentProblem\n"
            "from zcache.pager import worker\n"
            "class NoThread(worker.OwnThread):\n"
            "    def start(self): raise EnvironmentProblem('the thread could not be started')\n"
            "worker.OwnThread = NoThread"
        )
        + "Region('8M', '2M')\n"
    )
    assert done.stderr.splitlines()[-1].endswith("the pager has no room for a region: the thread could not be started")


def test_a_successor_that_is_refused_something_is_followed_by_the_next() -> None:
    """What stands against one may pass."""
    after = (
        "from zcache.errors import BadInput\n"
        "from zcache.pager import worker\n"
        "make = worker.Worker._make_store\n"
        "def refuse(self, packet):\n"
        "    if packet.words['era'] in (1, 2): raise BadInput('not now')\n"
        "    make(self, packet)\n"
        "worker.Worker._make_store = refuse"
    )
    done = run(
        with_pagers_that(after) + "region = Region('8M', '2M')\n"
        "region.buffer[:] = b'x' * len(region)\n"
        "os.kill(region.status()['pid'], signal.SIGKILL)\n"
        "print(bytes(region.buffer).count(b'x'), region.check()['removed_pages'])\n"
    )
    assert (done.returncode, done.stdout) == (0, f"{8 * MIB} 0\n"), done
    assert done.stderr.count("the next pager cannot begin: not now") == 2


def test_pagers_that_cannot_even_begin_are_not_replaced_for_ever() -> None:
    after = (
        "import os, signal\n"
        "from zcache.pager import worker\n"
        "make = worker.Worker._make_store\n"
        "def die(self, packet):\n"
        "    if packet.words['era']: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    make(self, packet)\n"
        "worker.Worker._make_store = die"
    )
    begin = time.monotonic()
    done = run(
        with_pagers_that(after) + "region = Region('8M', '2M')\n"
        "region.buffer[:] = b'x' * len(region)\n"
        "os.kill(region.status()['pid'], signal.SIGKILL)\n"
        "print(bytes(region.buffer).count(b'x'))\n"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, ""), done
    assert time.monotonic() - begin < 20
    why = "zcache: 5 times in a row a pager has ended at once; the last one has died (status -9)"
    assert done.stderr.splitlines().count(why) == 1, done
