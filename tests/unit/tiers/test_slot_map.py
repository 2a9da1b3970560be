"""The map of a tier's slots: what it costs where the device is huge."""

from pathlib import Path

from zcache.linux import memory
from zcache.tiers.slot_map import WINDOW_SLOTS, SlotMap

SLOTS = 1 << 28  # of 4 KiB: 1 TiB


def anonymous_kibibytes() -> int:
    """Memory of this process that is nobody else's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon")


def test_the_map_of_a_huge_device_takes_memory_for_what_is_used() -> None:
    """A byte a slot of 1 TiB would be 256 MiB, locked in the server."""
    before = anonymous_kibibytes()
    slots = SlotMap(SLOTS)
    first, count = slots.reserve(1000)
    assert (first, count) == (1, 1000) and slots.used_slots == 1000
    slots.release(500)
    slots.take_over(SLOTS)
    assert slots.used_slots == 1000
    used = slots.used_map()
    assert len(used) == SLOTS + 1 and used[1] == used[1000] == used[SLOTS] == 1
    assert used[500] == used[1001] == used[SLOTS - 1] == 0
    slots.next_slot = SLOTS - 8
    assert slots.reserve(16) == (SLOTS - 8, 8)
    assert slots.reserve(64) == (1001, 16)
    assert anonymous_kibibytes() < before + 4096


def test_it_is_populated_ahead_of_use() -> None:
    slots = SlotMap(SLOTS)
    slots.fault_ahead()
    used = slots.used_map()
    assert memory.resident_share(used[: 2 * WINDOW_SLOTS]) == 1.0
    assert memory.resident_share(used[SLOTS // 2 : SLOTS // 2 + WINDOW_SLOTS]) == 0.0
    slots.next_slot = WINDOW_SLOTS
    slots.fault_ahead()
    assert memory.resident_share(used[: 3 * WINDOW_SLOTS]) == 1.0
