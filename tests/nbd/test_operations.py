"""Every NBD operation on a real nbdkit, against a plain bytearray: any offset, any length."""

import random
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.nbd.conftest import Serve
from tests.support.pages import any_page

MIB = 1 << 20


@pytest.mark.parametrize("codec", ["lz4", "zstd:1"])
def test_any_operation_at_any_alignment(serve: Serve, rng: random.Random, codec: str, tmp_path: Path) -> None:
    server = serve("size=4M", "budget=1M", f"backing={tmp_path}/b", f"codec={codec}")
    client = server.connect()
    size = client.get_size()
    model = bytearray(rng.randbytes(size))
    client.pwrite(model, 0)  # four times the budget, however it compresses
    for _ in range(1500):
        offset, length = random_range(rng, size)
        match rng.choice(["write", "write", "read", "read", "zero", "trim", "flush"]):
            case "write":
                pages = b"".join(any_page(rng) for _ in range(length // 4096 + 1))
                client.pwrite(pages[:length], offset)
                model[offset : offset + length] = pages[:length]
            case "read":
                assert client.pread(length, offset) == model[offset : offset + length]
            case "zero":
                client.zero(length, offset, rng.choice([0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO]))
                model[offset : offset + length] = bytes(length)
            case "trim":
                client.trim(length, offset)
                first, stop = -(-offset // 4096) * 4096, (offset + length) // 4096 * 4096
                if stop > first:  # only whole pages are dropped
                    model[first:stop] = bytes(stop - first)
            case "flush":
                client.flush()
    assert client.pread(size, 0) == model
    assert server.status()["written_back_frames"] > 0
    client.shutdown()


def random_range(rng: random.Random, size: int) -> tuple[int, int]:
    """Aligned and not, small and large."""
    unit = rng.choice([1, 512, 4096, 4096, 4096])
    longest = rng.choice([1, 4096, 16384, 300000])
    offset = rng.randrange(size // unit) * unit
    length = min(rng.randrange(1, max(longest // unit, 1) + 1) * unit, size - offset)
    return offset, length


def test_size_flags_and_block_sizes(serve: Serve) -> None:
    client = serve("size=64M", "budget=64M").connect()
    assert client.get_size() == 64 * MIB
    for can in ("can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_multi_conn"):
        assert getattr(client, can)(), can
    assert not client.is_read_only() and not client.is_rotational()
    assert client.get_block_size(nbd.SIZE_MINIMUM) == 1
    assert client.get_block_size(nbd.SIZE_PREFERRED) == 4096
    assert client.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
    client.shutdown()


def extents_of(client: Any, length: int, offset: int) -> list[tuple[int, bool]]:
    """(length, reads as zeros), merged over as many calls as it takes."""
    runs: list[tuple[int, bool]] = []
    position = offset
    while position < offset + length:
        got: list[int] = []

        def collect(_context: str, _offset: int, entries: list[int], _error: int, got: list[int] = got) -> None:
            got.extend(entries)

        client.block_status(offset + length - position, position, collect)
        for run, flags in zip(got[::2], got[1::2], strict=True):
            zeros = flags == nbd.STATE_HOLE | nbd.STATE_ZERO
            assert zeros or flags == 0
            run = min(run, offset + length - position)
            position += run
            if run:
                runs.append((run, zeros))
    merged: list[tuple[int, bool]] = []
    for run, zeros in runs:
        if merged and merged[-1][1] == zeros:
            merged[-1] = (merged[-1][0] + run, zeros)
        else:
            merged.append((run, zeros))
    return merged


def test_extents(serve: Serve, rng: random.Random) -> None:
    client = serve("size=64M", "budget=64M").connect()
    assert extents_of(client, 64 * MIB, 0) == [(64 * MIB, True)]
    client.pwrite(rng.randbytes(8192), MIB)
    client.pwrite(bytes(4096), 2 * MIB)  # zeros that were written are zeros
    client.pwrite(b"x", 40 * MIB + 5000)
    assert extents_of(client, 64 * MIB, 0) == [
        (MIB, True),
        (8192, False),
        (39 * MIB - 4096, True),
        (4096, False),
        (24 * MIB - 8192, True),
    ]
    assert extents_of(client, 1000, MIB + 100) == [(1000, False)]
    client.trim(64 * MIB, 0)
    assert extents_of(client, 64 * MIB, 0) == [(64 * MIB, True)]
    client.shutdown()


def test_scattered_pages_need_several_extent_calls(serve: Serve, rng: random.Random) -> None:
    client = serve("size=64M", "budget=64M").connect()
    for page in range(0, 6000, 2):
        client.pwrite(rng.randbytes(64) + bytes(4032), page * 4096)
    assert extents_of(client, 6000 * 4096, 0) == [(4096, zeros) for _ in range(3000) for zeros in (False, True)]
    client.shutdown()


def test_trim_of_a_whole_64_gib_device(serve: Serve, rng: random.Random) -> None:
    server = serve("size=64G", "budget=64M", "overcommit=yes")
    client = server.connect()
    for where in (0, 1 << 30, 40 << 30, (64 << 30) - MIB):
        client.pwrite(rng.randbytes(MIB), where)
    step = (4 << 30) - 4096  # the protocol's length has 32 bits
    for offset in range(0, 64 << 30, step):
        client.trim(min(step, (64 << 30) - offset), offset)
    assert client.pread(MIB, 40 << 30) == bytes(MIB)
    assert server.check()["stored_pages"] == 0
    client.shutdown()


def test_large_requests(serve: Serve, rng: random.Random) -> None:
    client = serve("size=64M", "budget=64M").connect()
    data = rng.randbytes(20 * MIB)
    client.pwrite(data, 12345)
    assert client.pread(20 * MIB, 12345) == data
    client.shutdown()


@pytest.mark.parametrize(("allocator", "pages"), [("zbud", 256), ("log", 12 * 15)])  # log: four of 16 frames are kept
def test_a_full_store_fails_the_write_and_keeps_every_earlier_page(
    serve: Serve, rng: random.Random, allocator: str, pages: int
) -> None:
    server = serve("size=4M", "budget=1M", "overcommit=yes", f"allocator={allocator}")
    client = server.connect()
    written = {}
    with pytest.raises(nbd.Error) as failure:
        for page in range(1024):
            data = rng.randbytes(4096)
            client.pwrite(data, page * 4096)
            written[page] = data
    assert failure.value.errno == "ENOSPC"
    assert len(written) == pages
    for page, data in written.items():
        assert client.pread(4096, page * 4096) == data
    with pytest.raises(nbd.Error) as lost:
        client.pread(4096, len(written) * 4096)
    assert lost.value.errno == "EIO"
    client.trim(4096, len(written) * 4096)
    assert client.pread(4096, len(written) * 4096) == bytes(4096)
    client.trim(16 * 4096, 0)  # in log, a whole frame
    client.pwrite(data, 0)
    assert client.pread(4096, 0) == data
    assert server.status()["failed_puts"] == 1
    client.shutdown()
