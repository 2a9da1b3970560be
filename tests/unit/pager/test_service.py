"""`zcache pager`: several programs, each with regions of its own, over one store."""

import contextlib
import ctypes
import json
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.regions import MIB, REPOSITORY, needs_regions
from zcache.control.ask import ask
from zcache.errors import BadInput, EnvironmentProblem
from zcache.linux import memory, userfaultfd
from zcache.pager.region import Region
from zcache.pager.region_file import new_memfd

pytestmark = needs_regions


@contextlib.contextmanager
def service(folder: Path, *words: str) -> Iterator[tuple[Path, "subprocess.Popen[str]"]]:
    """Its socket, and its process. At the end its books balance, and it ends when it is told."""
    path = folder / "pager"
    command = [sys.executable, "-m", "zcache.pager.service", str(path), *(words or ("size=64M",))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stderr
        try:
            assert "regions are served at" in process.stderr.readline()
            yield path, process
            if process.poll() is None:
                assert ask(control(path), "check")["balanced"]
                wait_for(lambda: not status(path)["regions"])
                assert status(path)["stored_pages"] == 0
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
                assert not path.exists() and not control(path).exists()
        finally:
            process.kill()


def control(path: Path) -> Path:
    return Path(f"{path}.control")


def status(path: Path) -> dict[str, Any]:
    try:
        return ask(control(path), "status")
    except EnvironmentProblem:
        return {}


def wait_for(holds: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_whole(row: dict[str, int]) -> bool:
    """Each page is counted once: none leaves now."""
    return row["stored_region_pages"] + row["resident_pages"] == row["region_bytes"] // 4096


def fill(region: Region, rng: random.Random) -> bytes:
    data = b"".join(rng.randbytes(1000) + bytes(3096) for _ in range(len(region) // 4096))
    region.buffer[:] = data
    return data


@contextlib.contextmanager
def program(path: Path, size: str, then: str) -> Iterator["subprocess.Popen[str]"]:
    """Another client, which fills its region, says so, and goes on with `then`; ended at last."""
    text = (
        "import sys, time, zcache\n"
        f"region = zcache.Region({size!r}, '1M', pager={str(path)!r})\n"
        "region.buffer[:] = b'abcdefgh' * (len(region) // 8)\n"
        f"print('filled', flush=True)\n{then}\n"
    )
    command = [sys.executable, "-c", text]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPOSITORY
    ) as process:
        try:
            assert process.stdout and process.stdout.readline() == "filled\n"
            yield process
        finally:
            process.kill()


def test_regions_of_several_programs_lie_side_by_side(rng: random.Random, tmp_path: Path) -> None:
    with (
        service(tmp_path, "size=32M", "codec=zstd:2") as (path, _),
        Region("8M", "2M", pager=path) as first,
        Region("8M", "1M", pager=path) as second,
        program(path, "8M", "time.sleep(60)") as other,
    ):
        contents = fill(first, rng), fill(second, rng)
        assert (bytes(first.buffer), bytes(second.buffer)) == contents
        with pytest.raises(BadInput, match="budget=16M: nothing can be set here"):
            ask(control(path), "set budget=16M")
        said = status(path)
        assert said["codec"] == "zstd:2" and said["size_bytes"] == 32 * MIB
        rows = said["regions"]
        assert [row["client_pid"] for row in rows] == [os.getpid(), os.getpid(), other.pid]
        assert [row["limit_bytes"] for row in rows] == [2 * MIB, MIB, MIB]
        for row in rows:
            assert row["region_bytes"] == 8 * MIB and row["resident_pages"] * 4096 <= row["limit_bytes"]
            assert row["faults"] > 100 and 0 < row["fault_p50_us"] <= row["fault_p99_us"]
        wait_for(lambda: all(map(is_whole, status(path)["regions"])))
        said = status(path)
        assert sum(row["stored_region_pages"] for row in said["regions"]) == said["stored_pages"]
        second.advise(4)  # MADV_DONTNEED
        assert second.buffer == bytes(len(second)) and first.buffer == contents[0]
        assert first.check()["removed_pages"] == 0


def test_what_a_client_leaves_is_free_for_the_next_and_zeros(rng: random.Random, tmp_path: Path) -> None:
    """However it goes."""
    with service(tmp_path, "size=16M") as (path, _):
        with Region("8M", "2M", pager=path) as first:
            fill(first, rng)
            with Region("8M", "2M", pager=path), pytest.raises(BadInput, match="other regions have the rest"):
                Region("4M", "1M", pager=path)
            wait_for(lambda: len(status(path)["regions"]) == 1)
            with program(path, "8M", "time.sleep(60)"):
                assert status(path)["stored_pages"] > 2048
            wait_for(lambda: len(status(path)["regions"]) == 1)
        for _ in range(3):
            wait_for(lambda: not status(path)["regions"])
            with Region("16M", "2M", pager=path) as whole:
                assert whole.buffer == bytes(len(whole))
                fill(whole, rng)


def test_its_pager_is_killed_and_all_regions_go_on(rng: random.Random, tmp_path: Path) -> None:
    with (
        service(tmp_path, "size=32M", f"backing={tmp_path / 'backing'}") as (path, process),
        Region("12M", "2M", pager=path) as first,
        Region("12M", "1M", pager=path) as second,
    ):
        contents = fill(first, rng), fill(second, rng)
        assert first.status()["keeper_pid"] == process.pid
        for era in range(1, 4):
            os.kill(status(path)["pid"], signal.SIGKILL)
            assert (bytes(first.buffer), bytes(second.buffer)) == contents
            with Region("4M", "1M", pager=path) as third:
                third.buffer[:] = first.buffer[: 4 * MIB]
                assert third.buffer == contents[0][: 4 * MIB]
            wait_for(lambda: bool(status(path)))
            assert status(path)["server_number"] == era + 1
        assert first.check()["removed_pages"] == second.check()["removed_pages"] == 0


def test_it_ends_with_the_last_region_or_at_once(tmp_path: Path) -> None:
    with service(tmp_path) as (path, process), program(path, "8M", "time.sleep(60)") as other:
        process.send_signal(signal.SIGTERM)
        assert process.stderr and "regions in use: 1;" in process.stderr.readline()
        with pytest.raises(EnvironmentProblem, match=r"start one there: zcache pager|the pager has ended"):
            Region("8M", "1M", pager=path)
        process.send_signal(signal.SIGTERM)
        assert other.wait(20) == -signal.SIGBUS and process.wait(20) == 0
        assert "a second signal: regions in use: 1; their programs get SIGBUS" in process.stderr.read()
    with service(tmp_path) as (path, process):
        with Region("8M", "1M", pager=path) as region:
            process.send_signal(signal.SIGINT)
            assert process.stderr and "regions in use: 1;" in process.stderr.readline()
            region.buffer[:] = b"x" * len(region)
            assert bytes(region.buffer) == b"x" * len(region)
        assert process.wait(20) == 0


def test_without_its_keeper_it_goes_on_and_then_ends(tmp_path: Path) -> None:
    with service(tmp_path) as (path, process):
        with Region("8M", "1M", pager=path) as region:
            pid = region.status()["pid"]
            process.kill()
            process.wait()
            region.buffer[:] = b"x" * len(region)
            assert bytes(region.buffer) == b"x" * len(region)
            with pytest.raises(EnvironmentProblem, match="start one there"):
                Region("8M", "1M", pager=path)
        wait_for(lambda: not Path(f"/proc/{pid}").exists())
        with service(tmp_path) as (again, _), Region("8M", "1M", pager=again) as region:  # over what is left
            region.buffer[:] = b"x" * len(region)


def connect(path: Path, words: object, descriptors: list[int]) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(path))
    said = words if isinstance(words, bytes) else json.dumps(words).encode()
    socket.send_fds(client, [said + b"\n"], descriptors)
    return client


def open_files(*pids: int) -> list[int]:
    """How many each has."""
    return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids]


def test_clients_that_say_nonsense_cost_nobody_else_anything(rng: random.Random, tmp_path: Path) -> None:
    with service(tmp_path) as (path, process), Region("8M", "1M", pager=path) as region:
        content = fill(region, rng)
        pid = region.status()["pid"]
        before = open_files(process.pid, pid)
        size = 4 * MIB
        good = {"start": 1 << 40, "size": size, "limit": MIB, "parameters": {}}
        unsealed = os.memfd_create("other")
        os.ftruncate(unsealed, size)
        faults, memfd = userfaultfd.open_descriptor(), new_memfd(size)
        userfaultfd.handshake(faults, 0)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends = [ours.fileno(), theirs.fileno()]
        for words, descriptors, said in (
            ([], [faults, memfd, *ends], "a client says where its region is"),
            ({**good, "size": "4M"}, [faults, memfd, *ends], "a client says where its region is"),
            ({**good, "size": 4097}, [faults, memfd, *ends], "give whole pages"),
            ({**good, "size": -4096}, [faults, memfd, *ends], "give whole pages"),
            ({**good, "size": 1 << 50}, [faults, memfd, *ends], "a sealed memfd"),
            (good, [memfd, memfd, *ends], "is a userfaultfd"),
            (good, [faults, unsealed, *ends], "a sealed memfd"),
            (good, [faults, memfd, memfd, memfd], "a Unix socket of sequenced packets"),
            ({**good, "limit": 1 << 62}, [faults, memfd, *ends], "give at least 1M, and less than size="),
            ({**good, "limit": 4096}, [faults, memfd, *ends], "give at least 1M, and less than size="),
            (good, [faults, memfd], ""),
            (good, [], ""),
            (b"[" * 60_000, [faults, memfd, *ends], ""),
            (b"1" * 5000, [faults, memfd, *ends], ""),
        ):
            with connect(path, words, descriptors) as client:
                answer = b""
                with contextlib.suppress(ConnectionResetError):  # it has not read all of it
                    answer = client.recv(1 << 16)
                assert said in answer.decode() and bool(said) == bool(answer), (words, answer)
        # Such that are let in, without memory, ask for what is another's, or for nothing.
        for request in (b"0 1 forget 0 999999999\n", b"\n", b"x" * 5000, b"0 1 forget -5 3\n", b"0 1 check\n"):
            with connect(path, good, [faults, memfd, *ends]) as client:
                client.sendall(request)
                with contextlib.suppress(ConnectionError):
                    while client.recv(1 << 16) and request == b"\n":
                        pass
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            assert region.buffer == content and region.status()["pid"] == pid
            assert process.poll() is None
        wait_for(lambda: len(status(path)["regions"]) == 1)
        wait_for(lambda: open_files(process.pid, pid) == before)
        for descriptor in (faults, memfd, unsealed):
            os.close(descriptor)
        ours.close()
        theirs.close()


def test_a_client_that_has_its_userfaultfd_block_is_served_no_more(tmp_path: Path) -> None:
    with service(tmp_path) as (path, _), Region("8M", "1M", pager=path) as region:
        text = (
            f"import os, time, zcache\nregion = zcache.Region('8M', '1M', pager={str(path)!r})\n"
            "os.set_blocking(region._link._descriptor, True)\n"
            "region.buffer[:] = b'x' * len(region)\n"
        )
        done = subprocess.run([sys.executable, "-c", text], cwd=REPOSITORY, check=False, timeout=30)
        assert done.returncode == -signal.SIGBUS
        wait_for(lambda: len(status(path)["regions"]) == 1)
        region.buffer[:] = b"y" * len(region)


def test_a_store_that_is_full_is_degraded_until_somebody_gives_pages_back(tmp_path: Path) -> None:
    """Which may be the client whose other thread waits for a page."""
    with (
        service(tmp_path, "size=32M", "budget=8M", "overcommit=yes") as (path, process),
        Region("24M", "1M", pager=path) as region,
    ):
        done: list[int] = []
        start = memory.address(region.buffer)

        def work() -> None:
            for at in range(0, len(region), 4096):  # without Python's lock
                ctypes.memmove(start + at, random.Random(at).randbytes(4096), 4096)
                done.append(at)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert process.stderr and "store is full" in process.stderr.readline()
            assert status(path)["state"] == "degraded" and "store is full" in status(path)["reasons"][0]
        finally:  # whatever was found: it must not write to a region that is closed
            for _ in range(10):
                region.advise(mmap.MADV_DONTNEED, 0, max(done) // MIB * MIB)
                thread.join(1)
        assert not thread.is_alive() and len(done) == len(region) // 4096
        wait_for(lambda: status(path)["state"] == "ok")


def test_threads_make_and_drop_regions_at_once(rng: random.Random, tmp_path: Path) -> None:
    """And no descriptor is left behind."""
    problems: list[BaseException] = []
    # A region that stays: while one ends, nobody can tell how many descriptors there are to be.
    with service(tmp_path, "size=64M") as (path, process), Region("2M", "1M", pager=path) as staying:

        def work(seed: float) -> None:
            own = random.Random(seed)
            try:
                for _ in range(6):
                    with Region(own.randrange(2, 8) * MIB, MIB, pager=path) as region:
                        content = fill(region, own)
                        assert region.buffer == content
            except BaseException as problem:
                problems.append(problem)

        pids = (process.pid, staying.status()["pid"])
        before = open_files(*pids)
        threads = [threading.Thread(target=work, args=(rng.random(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems, problems
        wait_for(lambda: open_files(*pids) == before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["codec=lz4"], "size=: missing"),
        (["size=8M", "size=9M"], "each key once"),
        (["1G"], "give key=value, such as size=1G"),
        (["size=8M", "colour=red"], "colour=red: unknown parameter"),
        (["size=8M", "codec=middle-out"], "codec=middle-out"),
        (["size=8M", "control=/proc/no"], "control=/proc/no"),
    ],
    ids=str,
)
def test_it_refuses_in_a_line(tmp_path: Path, words: list[str], said: str) -> None:
    path = tmp_path / "pager"
    command = [sys.executable, "-m", "zcache.pager.service", str(path), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=60)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1], done
    assert list(tmp_path.iterdir()) == []


def test_regions_and_their_pager_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is told that when it is started"):
        Region("8M", "1M", pager=tmp_path / "pager", codec="zstd")
    with service(tmp_path) as (path, _):
        command = [sys.executable, "-m", "zcache.pager.service", str(path), "size=8M"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=60)
        assert done.returncode == 2 and "another pager answers there" in done.stderr


def test_memory_that_nobody_needs_goes_back_to_the_system(rng: random.Random, tmp_path: Path) -> None:
    """Whether its client has gone, or what it wrote compresses better now."""
    with service(tmp_path, "size=64M") as (path, _):
        before = status(path)["rss_bytes"]
        with Region("48M", "1M", pager=path) as region:
            for at in range(0, len(region), 4096):
                region.buffer[at : at + 4096] = rng.randbytes(4096)
            assert status(path)["rss_bytes"] > before + 40 * MIB
            for at in range(0, len(region), 4096):
                region.buffer[at : at + 4096] = rng.randbytes(512) * 8
            wait_for(lambda: status(path)["rss_bytes"] < before + 24 * MIB)
            assert region.check()["removed_pages"] == 0
            for at in range(0, len(region), 4096):
                region.buffer[at : at + 4096] = rng.randbytes(4096)
        wait_for(lambda: status(path)["rss_bytes"] < before + 16 * MIB)


def test_a_pager_that_hangs_up_at_once_is_one_line(tmp_path: Path) -> None:
    """As one does that is just about to end."""
    path = tmp_path / "pager"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        ended = threading.Event()

        def hang_up() -> None:
            listener.settimeout(20)
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        for _ in range(50):
            with pytest.raises(EnvironmentProblem, match="the pager has ended"):
                Region("8M", "1M", pager=path)
        ended.set()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(path))
        thread.join()
