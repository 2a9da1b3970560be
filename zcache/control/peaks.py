"""Peaks: the most of each amount that there has been, as far as somebody looked: the original kept
a `_max` beside each count, at each change; here that would cost every page something, and somebody
looks twice a second instead."""

from zcache.pageframes.queues import Queue
from zcache.store.store import Store


class Peaks:
    """Of one store; `look` takes its lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._most: dict[str, int] = {}

    def look(self) -> None:
        """Now and then."""
        with self._store.lock:
            now = amounts(self._store)
        self._most = {name: max(amount, self._most.get(name, 0)) for name, amount in now.items()}

    def status(self) -> dict[str, int]:
        """The most of each, with `_max` behind its name."""
        self.look()
        return {f"{name}_max": most for name, most in self._most.items()}


def amounts(store: Store) -> dict[str, int]:
    """Under the lock: what each kind of pool holds in RAM and below, in frames in RAM, pages and
    bytes of zpages."""
    statistics, frames = store.statistics, store.frames
    ephemeral_frames = frames.queue_length[Queue.EPHEMERAL]
    return {
        "persistent_frames": frames.resident - ephemeral_frames,
        "persistent_pages": statistics.stored_pages - statistics.ephemeral_pages,
        "persistent_bytes": statistics.compressed_bytes - statistics.ephemeral_bytes,
        "ephemeral_frames": ephemeral_frames,
        "ephemeral_pages": statistics.ephemeral_pages,
        "ephemeral_bytes": statistics.ephemeral_bytes,
    }
