"""The tier contract, for every tier."""

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import engines
from tests.support.remote import Far
from tests.support.tiers import MemoryTier
from zcache.tiers import Tier
from zcache.tiers.backing_file import BackingFile

FRAME_BYTES = 4096


@pytest.fixture(params=["memory", "file", "file without O_DIRECT", "remote", "remote front"])
def tier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tier]:
    with contextlib.ExitStack() as stack:
        made: Tier
        if request.param == "memory":
            made = MemoryTier(64)
        elif request.param.startswith("remote"):
            urls = [engine.url() for engine in stack.enter_context(engines(tmp_path, 2))]
            far = Far(urls, backing=MemoryTier(64) if request.param == "remote front" else None)
            made = far.tier
        else:
            if request.param != "file":
                monkeypatch.setattr("zcache.tiers.backing_file._try_direct", lambda *_arguments: False)
            made = BackingFile.open(
                tmp_path / "b", needed_bytes=0, new_bytes=64 * FRAME_BYTES, frame_bytes=FRAME_BYTES, force=False
            )
        yield made
        made.close()


def buffers(count: int, fill: int = 0) -> list[memoryview]:
    """Page-aligned, as RAM slots are."""
    memory = memoryview(mmap.mmap(-1, count * FRAME_BYTES))
    for index in range(count * FRAME_BYTES):
        memory[index] = (fill + index // FRAME_BYTES) & 0xFF if fill else 0
    return [memory[start : start + FRAME_BYTES] for start in range(0, len(memory), FRAME_BYTES)]


def test_slots_start_at_one_and_run_out(tier: Tier) -> None:
    assert tier.slot_count == 64
    assert tier.reserve(64) == (1, 64)
    assert tier.reserve(1) == (0, 0)
    assert bytes(tier.used_map()) == b"\1" * 65 and tier.used_slots == 64
    tier.release(17)
    assert tier.reserve(8) == (17, 1)


def test_a_shorter_run_is_given_when_free_slots_are_scattered(tier: Tier) -> None:
    tier.reserve(64)
    for slot in (3, 10, 11, 12, 40):
        tier.release(slot)
    first, count = tier.reserve(5)
    assert count == 2 and first in (10, 11)
    assert tier.used_slots == 61


def test_what_was_written_is_read(tier: Tier) -> None:
    first, count = tier.reserve(8)
    assert count == 8
    tier.write(first, buffers(8, fill=1))
    other, _ = tier.reserve(1)
    tier.write(other, buffers(1, fill=200))
    into = buffers(8)
    tier.read(first, into)
    assert [frame[0] for frame in into] == list(range(1, 9)) and all(frame[4095] == frame[0] for frame in into)
    single = buffers(1)
    tier.read(first + 5, single)
    assert single[0][100] == 6


def test_overwriting_a_slot_leaves_its_neighbours(tier: Tier) -> None:
    first, _ = tier.reserve(3)
    tier.write(first, buffers(3, fill=1))
    tier.write(first + 1, buffers(1, fill=99))
    into = buffers(3)
    tier.read(first, into)
    assert [frame[0] for frame in into] == [1, 99, 3]


def test_releasing_twice_is_our_own_bug(tier: Tier) -> None:
    first, _ = tier.reserve(1)
    tier.release(first)
    with pytest.raises(AssertionError):
        tier.release(first)


def test_another_copy_is_what_was_written_too(tier: Tier) -> None:
    first, _ = tier.reserve(3)
    tier.write(first, buffers(3, fill=7))
    [into] = buffers(1)
    for slot, byte in enumerate((7, 8, 9), first):
        tier.read_again(slot, into, lambda byte=byte: into[0] == byte)  # type: ignore[misc]
        assert into[0] == byte
