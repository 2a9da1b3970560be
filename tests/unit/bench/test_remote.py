"""`scripts/bench remote`: that its injected delays are what they say, and that it measures."""

import contextlib
import errno
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from zcache.bench.remote import mirroring, node
from zcache.bench.remote.__main__ import main
from zcache.bench.remote.engines import Server, engine, ping_seconds, program, relay, relay_adding
from zcache.bench.remote.reading import Way, fill, new_frames, read
from zcache.bench.remote.slow_disk import OPERATION_BYTES, SlowDisk
from zcache.bench.remote.sources import FRAME_BYTES, Bare, Source, backing_file, remote_tier
from zcache.errors import EnvironmentProblem
from zcache.remote.resp import Connection
from zcache.tiers.slot_map import SlotMap


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        program()
    except EnvironmentProblem as error:
        pytest.skip(f"NOT run: {error}")
    with engine(tmp_path_factory.mktemp("engine")) as server:
        yield server


def port_of(server: Server) -> int:
    return int(server.addresses[1].sockaddr[1])


class Instant(SlotMap):
    """A tier that takes no time, and keeps nothing."""

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        pass

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        pass

    def close(self) -> None:
        pass


# -- the slow disk
# --------------------------------------------------------------------------------------------------


def test_a_read_takes_its_time() -> None:
    disk = SlowDisk(Instant(8), operations_per_second=1e6, read_seconds=0.003)
    begin = time.monotonic()
    disk.read(1, [memoryview(bytearray(4096))])
    assert time.monotonic() - begin >= 0.003


def test_reads_wait_side_by_side_but_begin_one_by_one() -> None:
    disk = SlowDisk(Instant(8), operations_per_second=1000, read_seconds=0.05)
    frames = [memoryview(bytearray(4096))]
    threads = [threading.Thread(target=disk.read, args=(1, frames)) for _ in range(8)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.057 <= time.monotonic() - begin < 0.3  # not 8 times 0.05


def test_a_write_waits_for_its_turn_and_no_longer() -> None:
    disk = SlowDisk(Instant(8), operations_per_second=500, read_seconds=60)
    begin = time.monotonic()
    for _ in range(4):
        disk.write(1, [memoryview(bytearray(4096))])
    assert 0.006 <= time.monotonic() - begin < 30


def test_a_large_request_is_several_operations() -> None:
    disk = SlowDisk(Instant(8), operations_per_second=500, read_seconds=0)
    begin = time.monotonic()
    disk.read(1, [memoryview(bytearray(OPERATION_BYTES // 2))] * 8)
    assert time.monotonic() - begin >= 3 / 500


def test_books_are_the_tiers_own() -> None:
    tier = Instant(8)
    disk = SlowDisk(tier, operations_per_second=1000, read_seconds=0)
    assert disk.reserve(3) == (1, 3) and disk.used_slots == tier.used_slots == 3 and disk.free_slots == 5
    disk.release(2)
    disk.take_over(5)
    assert disk.used_map().tolist() == [1, 1, 0, 1, 0, 1, 0, 0, 0] and disk.is_prompt


# -- the relay
# --------------------------------------------------------------------------------------------------


def test_a_relay_adds_its_delay_to_a_round_trip(server: Server, tmp_path: Path) -> None:
    with relay(tmp_path, port_of(server), 0.02) as slow:
        assert ping_seconds(slow.addresses[0], count=5)[0] >= 0.02


def test_a_relay_delays_a_batch_once_and_changes_no_byte(server: Server, tmp_path: Path, seed: int) -> None:
    with relay(tmp_path, port_of(server), 0.1) as slow, contextlib.closing(Bare(slow.addresses[0], 1)) as source:
        fill(source, 16)
        begin = time.monotonic()
        found = read(source, 16, Way(1, 8), 0.3, seed, [server, slow])
        assert time.monotonic() - begin < 5
        assert found.p50_us >= 100_000 and found.frames_per_second > 8


def test_a_relay_goes_on_when_a_connection_ends(server: Server, tmp_path: Path) -> None:
    with relay(tmp_path, port_of(server), 0.0) as slow:
        first, second = (Connection(slow.addresses[0], seconds=5) for _ in range(2))
        first.close()
        assert second.call("PING", seconds=5) == b"PONG"
        second.close()


def test_a_relay_closes_what_the_engine_closes(server: Server, tmp_path: Path) -> None:
    with relay(tmp_path, port_of(server), 0.0) as slow, contextlib.closing(slow.connect()) as connection:
        with contextlib.suppress(OSError):
            connection.call("QUIT", seconds=5)
        with pytest.raises(OSError, match=r"closed|reset|pipe"):
            connection.call("PING", seconds=5)


def test_what_a_relay_takes_itself_is_part_of_what_it_adds(server: Server, tmp_path: Path) -> None:
    with relay_adding(tmp_path, port_of(server), 0.005, pings=20) as found:
        assert found.least_added_seconds > found.delay_seconds > 0


# -- measuring
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [Way(1, 1), Way(4, 1), Way(1, 8)])
@pytest.mark.parametrize("kind", ["tier", "connection", "disk"])
def test_frames_are_read_and_looked_at(kind: str, way: Way, server: Server, tmp_path: Path, seed: int) -> None:
    source: Source
    with contextlib.ExitStack() as stack:
        if kind == "disk":
            source = stack.enter_context(backing_file(tmp_path, 32))
        elif kind == "tier":
            source = stack.enter_context(contextlib.closing(remote_tier(server.addresses[:1], 32)))
        else:
            source = stack.enter_context(contextlib.closing(Bare(server.addresses[1], 4)))
        fill(source, 32)
        found = read(source, 32, way, 0.1, seed, [] if kind == "disk" else [server])
        assert (
            found.longest_us >= found.p99_us >= found.p50_us > 0
            and not found.failed
            and found.frames_per_second > 0
            and found.own_us > 0
        )
        frames = new_frames(1)
        source.write(5, frames)  # not what is to be there
        with pytest.raises(AssertionError, match="other frames"):
            read(source, 5, Way(1, 5), 0.01, seed, [])


def test_reads_that_fail_are_counted(seed: int) -> None:
    class Broken(Instant):
        def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
            raise OSError(errno.EIO, f"{len(frames)} frames from slot {first_slot}")

    found = read(Broken(8), 8, Way(2, 1), 0.01, seed, [])
    assert found.failed > 0 and not found.frames_per_second


@pytest.mark.usefixtures("server")
def test_the_last_bytes_stay_here_because_of_the_engines_classes(tmp_path: Path) -> None:
    whole, cut = node.memory(tmp_path)[:2]
    assert whole["frame, bytes"] == cut["frame, bytes"] == FRAME_BYTES
    for column in ("MEMORY USAGE", "used_memory", "RSS"):
        assert float(whole[column] or 0) > 1.05 * float(cut[column] or 0)


@pytest.mark.usefixtures("server")
def test_all_second_copies_of_an_engine_that_has_lost_them_are_made_again(tmp_path: Path) -> None:
    [row] = mirroring.measure(tmp_path, 100, [])
    assert row["frames"] == 100 and float(row["frames a second"] or 0) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_the_benchmark_comes_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--frames", "64", "--seconds", "1", "--rounds", "1", "--folder", str(tmp_path), "node"]) == 0
    assert "copied to another engine" in capsys.readouterr().out
    assert (tmp_path / "report.json").exists()
