"""Rebuild: a store made over an image goes on where its predecessor stopped, wherever that was.

The page table is the truth: a frame is what its entries say is alive in it. What the predecessor was in the middle of
falls away by itself: a put that had not published its entries (its pages are LOST, and its request, never answered,
comes again), a frame whose last zpage had died, a flight that had not landed (its frames are in RAM only, again), a
frame read back that had not been adopted. Nothing is believed that contradicts itself: two frames in one slot, two
zpages in one place, a zpage in a frame that is nowhere end the rebuild with `Imbalance`.
"""

from zcache.codec import NAMES
from zcache.entry import CODEC_MASK, CODEC_SHIFT, FRAME_MASK, SAME_FILLED
from zcache.errors import Imbalance
from zcache.pageframes import State
from zcache.store import Store
from zcache.tmem import Kind, TmemObject


def rebuild(store: Store, thing: TmemObject) -> None:
    """`thing`, an object over the image's entries, becomes what its predecessor's was; before the first request."""
    frames = store.frames
    zpages: dict[int, list[int]] = {}
    for block in thing.table.take_over():
        store.statistics.account(block, Kind.PERSISTENT, 1)
        for entry in block:
            if 0 < entry < SAME_FILLED:
                zpages.setdefault(entry & FRAME_MASK, []).append(entry)
    states: dict[int, State] = {}
    homes: set[int] = set()
    belows: set[int] = set()
    for frame, entries in zpages.items():
        if not 0 < frame <= frames.frame_count or any(e >> CODEC_SHIFT & CODEC_MASK not in NAMES for e in entries):
            raise Imbalance(f"an entry names frame {frame} of {frames.frame_count}, or a codec that is none")
        home, below = frames.home[frame], frames.below[frame]
        if not home and not below:
            raise Imbalance(f"frame {frame} is nowhere, and {len(entries)} entries name it")
        if home >= frames.slot_count or home in homes or below in belows:
            raise Imbalance(f"frame {frame} is in RAM slot {home} and slot {below} below, which another has")
        if home:
            homes.add(home)
        if below:
            belows.add(below)
            states[frame] = State.CLEAN if home else State.COLD
    states |= store.allocator.take_over(zpages)
    frames.take_over({frame: len(entries) for frame, entries in zpages.items()}, states)
    store.allocator.offer(frame for frame, state in states.items() if state == State.ACTIVE)
    if belows:
        if not store.tier or max(belows) > store.tier.slot_count:
            raise Imbalance(f"a frame is in slot {max(belows)} below, which is not there")
        store.tier.take_over(belows)
