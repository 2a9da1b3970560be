"""Rebuild: a store made over an image goes on where its predecessor stopped, wherever that was.

The page table is the truth: a frame is what its entries say is alive in it. What the predecessor
was in the middle of falls away by itself: a put that had not published its entries (its pages are
LOST, and its request, never answered, comes again), a frame whose last zpage had died, a flight
that had not landed (its frames are in RAM only, again), a frame read back that had not been
adopted. Nothing is believed that contradicts itself: two frames in one slot, two zpages in one
place, a zpage in a frame that is nowhere end the rebuild with `Imbalance`.

It runs when memory may be short: what it needs beside the store's own arrays is 4 bytes for each
frame in RAM.
"""

from collections.abc import Callable

from zcache.errors import Imbalance
from zcache.pageframes.inheritance import beating, free_the_rest, inherit
from zcache.pages.codec import NAMES
from zcache.pages.entry import CODEC_MASK, CODEC_SHIFT, FRAME_MASK, SAME_FILLED
from zcache.pages.tmem import Kind, TmemObject
from zcache.store.store import Store


def rebuild(store: Store, thing: TmemObject, beat: Callable[[], None] = lambda: None) -> None:
    """`thing`, an object over the image's entries, becomes what its predecessor's was; before the
    first request. `beat` is called now and then."""
    frames, allocator = store.frames, store.allocator
    live, frame_count = frames.live, frames.frame_count
    highest = 0
    for block in thing.table.take_over():
        beat()
        store.statistics.account(block, Kind.PERSISTENT, 1)
        for entry in block:
            if 0 < entry < SAME_FILLED:
                frame = entry & FRAME_MASK
                if not 0 < frame <= frame_count or entry >> CODEC_SHIFT & CODEC_MASK not in NAMES:
                    raise Imbalance(f"an entry names frame {frame} of {frame_count}, or a codec that is none")
                allocator.inherit(entry)
                live[frame] += 1
                highest = max(highest, frame)
    for frame in beating(range(1, highest + 1), beat):
        if live[frame]:
            inherit(frames, frame, allocator.inherited_state)
            if below := frames.below[frame]:
                if not store.below.places:
                    raise Imbalance(f"frame {frame} is in slot {below} below, and there is nothing below")
                store.below.take_over(below, frame)
    free_the_rest(frames, highest, beat)
    allocator.offer_inherited(beat)
