"""Memory that a pager's store does not need any more goes back to the system.

A server has all of its budget in RAM from the start, locked. A pager takes memory as it needs it,
beside programs that want it, too.
"""

from typing import Final

from zcache.store.store import Store

#: Free memory that is kept: an eighth of what is used, and this.
KEPT_BYTES: Final = 8 << 20
KEPT_SHIFT: Final = 3


def give_back(store: Store) -> None:
    """Of slots that are free, those that had something last: they are the ones with memory."""
    frames = store.frames
    used_bytes = frames.resident * frames.frame_bytes
    surplus_bytes = frames.memory.held_bytes() - used_bytes - (used_bytes >> KEPT_SHIFT) - KEPT_BYTES
    count = min(surplus_bytes // frames.frame_bytes, frames.free_slot_count // 2)  # a put may come meanwhile
    if count <= 0:
        return
    with store.lock:
        slots = frames.slots.withdraw(count)
    try:
        frames.memory.give_back(slots)
    finally:
        with store.lock:
            frames.slots.restore(len(slots))
            store.reclaimer.landed.notify_all()
