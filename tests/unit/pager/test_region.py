"""Memory that is larger than the RAM it may take: real faults, a real pager."""

import mmap
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import zcache
from tests.support.regions import MIB, REPOSITORY, WITHOUT_POISON, damaged, needs_regions, run, with_pagers_that
from zcache.errors import BadInput
from zcache.pager.region import Region

pytestmark = needs_regions


@pytest.mark.parametrize("parameters", [{}, {"codec": "zstd"}, {"allocator": "zbud"}], ids=str)
def test_it_reads_and_writes_like_memory_and_stays_within_its_limit(
    rng: random.Random, parameters: dict[str, Any]
) -> None:
    size = 10 * MIB
    with Region(size, 2 * MIB, **parameters) as region:
        shadow = bytearray(size)
        most = 0
        for _ in range(4000):
            length = rng.choice([1, 100, 4096, rng.randrange(1, 60_000)])
            at = rng.randrange(size - length)
            if rng.random() < 0.5:
                data = (rng.randbytes(64) * (length // 64 + 1))[:length]
                region.buffer[at : at + length] = data
                shadow[at : at + length] = data
            else:
                assert region.buffer[at : at + length] == shadow[at : at + length]
            most = max(most, region.resident_bytes)
        assert region.buffer == shadow
        assert region.check()["removed_pages"] == 0
        assert MIB < most <= 2 * MIB
        status = region.status()
        assert status["faults"] > 1000 and status["stored_pages"] + status["resident_pages"] >= 2048


def test_what_does_not_fit_in_its_budget_goes_below(rng: random.Random, tmp_path: Path) -> None:
    pages = [rng.randbytes(2000) + bytes(2096) for _ in range(16 * MIB // 4096)]
    with Region("16M", "1M", budget="2M", backing=tmp_path / "backing") as region:
        for index, page in enumerate(pages):
            region.buffer[index * 4096 : (index + 1) * 4096] = page
        assert region.status()["reclaim_background"] + region.status()["reclaim_sync"] > 50
        for index in rng.sample(range(len(pages)), len(pages)):
            assert region.buffer[index * 4096 : (index + 1) * 4096] == pages[index]
        assert region.check()["removed_pages"] == 0


def test_advice(rng: random.Random) -> None:
    with Region("16M", "4M") as region:
        page = rng.randbytes(4096)
        for at in range(0, len(region), 4096):
            region.buffer[at : at + 4096] = page
        region.advise(mmap.MADV_DONTNEED, 4096 + 1, 8 * MIB)  # of whole pages
        assert region.buffer[: 2 * 4096] == page * 2
        assert region.buffer[2 * 4096 : 4096 + 8 * MIB] == bytes(8 * MIB - 4096)
        assert region.buffer[4096 + 8 * MIB :] == page * (len(region) // 4096 - 2049)
        region.advise(mmap.MADV_DONTNEED)
        assert region.resident_bytes == 0 and region.status()["stored_pages"] == 0
        assert region.buffer == bytes(len(region))
        region.buffer[:MIB] = page * 256
        region.buffer[MIB:] = page * (15 * 256)
        region.advise(mmap.MADV_DONTNEED, 8 * MIB)
        region.advise(mmap.MADV_WILLNEED, 0, MIB)
        before = region.status()["faults"]
        assert region.buffer[:MIB] == page * 256 and region.status()["faults"] == before
        region.advise(mmap.MADV_WILLNEED)
        assert region.resident_bytes <= 4 * MIB
        for wrong in ((mmap.MADV_RANDOM, 0, 1), (mmap.MADV_WILLNEED, -1, 5), (mmap.MADV_DONTNEED, 0, 17 * MIB)):
            with pytest.raises(BadInput):
                region.advise(*wrong)
        assert region.check()["removed_pages"] == 0


#: Of a client that has no right to userfaultfd.
AS_NOBODY = "os.setgroups([])\nos.setresgid(65534, 65534, 65534)\nos.setresuid(65534, 65534, 65534)\n"


@pytest.mark.parametrize("before", ["", AS_NOBODY], ids=["root", "nobody"])
def test_without_the_right_to_it_all_but_system_calls_works(before: str) -> None:
    look = ["setpriv", "--reuid=65534", "--clear-groups", "ls", str(REPOSITORY)]
    if before and subprocess.run(look, capture_output=True, check=False).returncode:
        pytest.skip("NOT run: not root, or nobody may not read this tree")
    done = run(
        before + "import os, zcache\n"
        "try:\n"
        "    Region('8M', '2M').close()\n"
        "    print('allowed')\n"
        "except zcache.errors.EnvironmentProblem as problem:\n"
        "    assert 'or give user_mode_only=True' in str(problem)\n"
        "region = Region('8M', '2M', user_mode_only=True)\n"
        "for at in range(0, len(region), 4096):\n"
        "    region.buffer[at:at + 8] = at.to_bytes(8, 'little')\n"
        "for at in range(0, len(region), 4096):\n"
        "    assert region.buffer[at:at + 8] == at.to_bytes(8, 'little')\n"
        "read, write = os.pipe()\n"
        "try:\n"
        "    os.write(write, region.buffer[:4096])\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
        "region.buffer[0]\n"
        "assert os.write(write, region.buffer[:4096]) == 4096\n"
        "assert os.read(read, 4096) == bytes(4096)\n"
    )
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "Bad address"
    assert before or done.stdout.startswith("allowed")


def test_faults_in_a_row_bring_neighbours_along() -> None:
    with Region("32M", "8M") as region:
        for at in range(0, len(region), 4096):
            region.buffer[at : at + 8] = at.to_bytes(8, "little")
        before = region.status()["faults"]
        for at in range(0, len(region), 4096):
            assert int.from_bytes(region.buffer[at : at + 8], "little") == at
        assert region.status()["faults"] - before < len(region) // 4096 // 10
        assert region.resident_bytes <= 8 * MIB


@pytest.mark.parametrize("before", ["", WITHOUT_POISON], ids=["poisoned", "signalled"])
def test_a_page_that_is_lost_is_sigbus_and_the_others_are_there(tmp_path: Path, before: str) -> None:
    done = run(
        before + damaged(tmp_path / "backing") + "print('damaged', flush=True)\n"
        "for at in range(0, len(region), 4096):\n"
        "    assert region.buffer[at:at + 4096] == random.Random(at).randbytes(4096), at\n"
        "print('nothing was lost')\n"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "damaged\n"), done
    assert "of a region cannot be had: " in done.stderr


def test_threads_each_with_pages_of_its_own(rng: random.Random) -> None:
    threads, size = 4, 16 * MIB
    wrong: list[int] = []
    with Region(size, 2 * MIB) as region:

        def work(number: int, seed: int) -> None:
            own = random.Random(seed)
            first, length = number * size // threads, size // threads
            view, shadow = region.buffer[first : first + length], bytearray(length)
            for _ in range(1500):
                at = own.randrange(length - 5000)
                if own.random() < 0.5:
                    view[at : at + 5000] = shadow[at : at + 5000] = own.randbytes(50) * 100
                elif view[at : at + 5000] != shadow[at : at + 5000]:
                    wrong.append(number)
            view.release()

        workers = [threading.Thread(target=work, args=(number, rng.random())) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong


def test_without_a_keeper_a_pager_that_dies_is_sigbus_and_neither_a_hang_nor_zeros() -> None:
    begin = time.monotonic()
    done = run(
        "region = Region('8M', '2M')\n"
        "region.buffer[:] = b'x' * len(region)\n"
        "status = region.status()\n"
        "os.kill(status['keeper_pid'], signal.SIGKILL)\n"
        "assert bytes(region.buffer).count(b'x') == len(region)\n"
        "print('goes on', flush=True)\n"
        "os.kill(status['pid'], signal.SIGKILL)\n"
        "print(bytes(region.buffer).count(b'x'))\n"
        "time.sleep(30)\n"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "goes on\n"), done
    assert time.monotonic() - begin < 20


def test_a_client_that_dies_leaves_no_pager() -> None:
    done = run("region = Region('8M', '2M')\nprint(region.status()['pid'], flush=True)\nos.kill(os.getpid(), 9)\n")
    _ends(int(done.stdout))


def test_what_is_left_to_the_end_of_a_program_is_no_signal() -> None:
    """A region that nobody closed, and one of which only a slice is left."""
    done = run(
        "import atexit\n"
        "slice = Region('8M', '2M').buffer[4096:8192]\n"
        "region = Region('8M', '2M')\n"
        "region.buffer[:] = b'x' * len(region)\n"
        "slice[:1] = b'y'\n"
        "atexit.register(lambda: print(bytes(slice[:2]), bytes(region.buffer).count(b'x')))\n"
    )
    assert (done.returncode, done.stdout) == (0, "b'y\\x00' 8388608\n"), done


def test_a_region_that_nobody_refers_to_is_given_back() -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    region = Region("8M", "2M")
    part, pager = region.buffer[:4096], region.status()["pid"]
    part[:3] = b"abc"
    del region
    assert bytes(part[:3]) == b"abc" and Path(f"/proc/{pager}").exists()
    del part
    assert not Path(f"/proc/{pager}").exists()
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("before", ["", "maps = [mmap.mmap(-1, 16 << 20) for _ in range(8)]\n    "])
def test_a_child_gets_sigsegv_and_neither_zeros_nor_what_it_maps_there(before: str) -> None:
    done = run(
        "import mmap\n"
        "region = Region('8M', '2M')\n"
        "region.buffer[:8] = b'inherits'\n"
        "child = os.fork()\n"
        f"if not child:\n    {before}print(bytes(region.buffer[:8]))\n    os._exit(0)\n"
        "print(os.waitpid(child, 0)[1], bytes(region.buffer[:8]))\n"
    )
    assert done.stdout.split(maxsplit=1)[0] in (str(int(signal.SIGSEGV)), str(signal.SIGSEGV | 128)), done
    assert "inherits" in done.stdout


def test_a_child_holds_nothing_up() -> None:
    done = run(
        "region = Region('8M', '2M')\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try:\n        region.status()\n"
        "    except Exception as error:\n        print(error, flush=True)\n"
        "    region.close()\n    time.sleep(30)\n    os._exit(0)\n"
        "time.sleep(1)\n"
        "begin = time.monotonic()\n"
        "region.close()\n"
        "print(time.monotonic() - begin < 10)\n"
        "os.kill(child, 9)\n"
    )
    assert done.stdout == "the region is closed, or another process's\nTrue\n", done


def test_a_request_that_a_signal_interrupts_is_not_answered_for_the_next() -> None:
    done = run(
        "import mmap\n"
        "class Interrupt(Exception): pass\n"
        "def interrupt(*_): raise Interrupt\n"
        "signal.signal(signal.SIGALRM, interrupt)\n"
        "region, interrupted = Region('64M', '16M'), 0\n"
        "for turn in range(200):\n"
        "    region.buffer[:1 << 20] = b'x' * (1 << 20)\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, 50e-6 * (turn % 20 + 1))\n"
        "        region.advise(mmap.MADV_DONTNEED, 0, 1 << 20)\n"
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "    except Interrupt:\n        interrupted += 1\n"
        "    region.advise(mmap.MADV_DONTNEED, 1 << 20, 4096)\n"
        "    region.buffer[:4] = b'kept'\n"
        "    assert 'faults' in region.status() and bytes(region.buffer[:4]) == b'kept'\n"
        "print(interrupted > 0)\n"
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done


def test_a_store_that_is_full_is_said_and_ends_who_needs_more() -> None:
    begin = time.monotonic()
    done = run(
        "import random\n"
        "region = Region('16M', '1M', budget='4M', overcommit='yes')\n"
        "print(region.status()['pid'], flush=True)\n"
        "for at in range(0, len(region), 4096):\n"
        "    region.buffer[at:at + 4096] = random.randbytes(4096)\n"
    )
    assert done.returncode == -signal.SIGBUS and "a region's store is full" in done.stderr, done
    assert time.monotonic() - begin < 40
    _ends(int(done.stdout))


def test_an_evictor_that_cannot_go_on_is_sigbus_and_no_hang() -> None:
    before = with_pagers_that(
        "from zcache.pager.eviction import Eviction\ndef fail(*_): raise MemoryError\nEviction.evict = fail"
    )
    done = run(before + "region = Region('8M', '1M')\nregion.buffer[:] = b'x' * len(region)\n")
    assert done.returncode == -signal.SIGBUS and done.stderr.count("MemoryError") > 1, done


def test_a_client_that_is_killed_while_it_faults_leaves_no_pager() -> None:
    for _ in range(3):
        done = run(
            "import threading\n"
            "region = Region('16M', '1M')\n"
            "print(region.status()['pid'], flush=True)\n"
            "threading.Timer(0.3, lambda: os.kill(os.getpid(), 9)).start()\n"
            "while True: region.buffer[:] = b'x' * len(region)\n"
        )
        _ends(int(done.stdout))


def _ends(pager: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pager}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_system_calls_into_it(tmp_path: Path) -> None:
    """The kernel itself touches pages that are not there."""
    data = random.Random(1).randbytes(1000) * 3000
    file = tmp_path / "file"
    file.write_bytes(data)
    with Region("8M", "1M") as region, file.open("rb", buffering=0) as opened:
        assert opened.readinto(region.buffer[: len(data)]) == len(data)
        region.buffer[4 * MIB : 6 * MIB] = bytes(range(256)) * (2 * MIB // 256)  # has the first ones leave
        read, write = os.pipe()
        got = b""
        while len(got) < len(data):
            sent = os.write(write, region.buffer[len(got) : min(len(got) + 60_000, len(data))])
            got += os.read(read, sent)
        assert got == data
        os.close(read)
        os.close(write)


def test_arrays(rng: random.Random) -> None:
    numpy = pytest.importorskip("numpy")
    with zcache.Region("24M", "4M") as region:
        numbers = region.array((1 << 20,), "int64")
        again = region.array((512, 1024), "float32")
        assert not numbers.any() and again.shape == (512, 1024)
        numbers[:] = numpy.random.default_rng(rng.randrange(1 << 30)).integers(0, 1000, len(numbers))
        copy = numbers.copy()
        again[:] = 2.5
        numbers.sort()
        copy.sort()
        assert (numbers == copy).all() and (again == 2.5).all() and region.resident_bytes <= 4 * MIB
        with pytest.raises(BadInput, match="does not fit in the 14680064 that are left"):
            region.array(2 << 20, "int64")
        with pytest.raises(BadInput, match="give no negative numbers"):
            region.array((1024, -2))
        with pytest.raises(BadInput, match="objects stay in ordinary memory"):
            region.array(5, "object")
        with pytest.raises(BufferError):
            region.close()
        assert (numbers == copy).all() and (again == 2.5).all()  # it is still there
        del numbers, again


@pytest.mark.parametrize(
    ("size", "limit", "said"),
    [
        (0, MIB, "size=0: give a size above 0"),
        (8 * MIB, 0, "resident_limit=0: give at least 1M"),
        (8 * MIB, 8 * MIB, "the whole of size=8388608 fits"),
    ],
)
def test_refusals(size: int, limit: int, said: str) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(BadInput, match=said):
        Region(size, limit)
    with pytest.raises(BadInput, match="codec=lzo: no such codec"):
        Region("8M", "1M", codec="lzo")
    with pytest.raises(BadInput, match="clean=x: unknown parameter; give allocator, "):
        Region("8M", "1M", clean="x")
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_size_is_rounded_up_to_whole_pages() -> None:
    with Region(2 * MIB + 1, MIB) as region:
        assert len(region) == 2 * MIB + 4096
        region.buffer[-1] = 7
        assert region.buffer[-1] == 7
