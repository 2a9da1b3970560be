"""The soak's traffic against a device that is a bytearray: it must know at any time what is in
it."""

import random

import pytest

from zcache.bench.soak.traffic import PAGE_BYTES, SHARES, Traffic, WrongPage

PAGES = 128


class Memory:
    """What libnbd's handle does, on a bytearray."""

    def __init__(self) -> None:
        self.content = bytearray(PAGES * PAGE_BYTES)

    def pwrite(self, data: bytes, offset: int) -> None:
        self.content[offset : offset + len(data)] = data

    def pread(self, count: int, offset: int) -> bytes:
        return bytes(self.content[offset : offset + count])

    def trim(self, count: int, offset: int) -> None:
        self.content[offset : offset + count] = bytes(count)

    zero = trim

    def shutdown(self) -> None:
        pass


@pytest.fixture
def memory() -> Memory:
    return Memory()


def test_a_faithful_device_passes_with_all_kinds_of_requests(memory: Memory, rng: random.Random) -> None:
    traffic = Traffic(lambda: memory, 0, PAGES, rng)
    traffic.fill()
    assert len({bytes(memory.content[start : start + 8]) for start in range(0, len(memory.content), PAGE_BYTES)}) > 100
    traffic.run(500)
    assert set(traffic.requests) == set(SHARES)


def test_one_wrong_byte_is_found(memory: Memory, rng: random.Random) -> None:
    traffic = Traffic(lambda: memory, 0, PAGES, rng)
    traffic.fill()
    memory.content[77 * PAGE_BYTES + 4000] ^= 1
    with pytest.raises(WrongPage):
        traffic.get(memory, 64, 32)


def test_a_write_that_was_lost_is_found(memory: Memory, rng: random.Random) -> None:
    traffic = Traffic(lambda: memory, 0, PAGES, rng)
    traffic.fill()
    before = bytes(memory.content)
    traffic.put(memory, 5, 1)
    memory.content[:] = before
    with pytest.raises(WrongPage):
        traffic.get(memory, 0, 8)
