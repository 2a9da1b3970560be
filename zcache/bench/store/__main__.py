"""`scripts/bench store`: what a put and a get cost in process, beside what the codec alone costs
for the same pages; how dense the store is beside the codec's own ratio; and what comes on top of
it.

The codec called through the same package, page by page, is the limit; the ratio to it is what the
store adds. Measured turn about in one run, in CPU time and as the median over rounds, because the
machine is never quiet.
"""

import argparse
import gc
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from zcache.allocators.choice import ALLOCATORS
from zcache.bench.against import MENTION
from zcache.bench.corpus import PAGE_BYTES, Corpus, gather, mixed
from zcache.bench.report import Figure, Report
from zcache.bench.store.density import (
    CHURN_ROUNDS,
    FULL,
    budget_for,
    density_of,
    metadata_of,
    new_device,
    recompression_of,
)
from zcache.control.check import check
from zcache.errors import BadInput
from zcache.image.image import Geometry, Image, new_descriptor
from zcache.page_loop.choice import PAGE_LOOP
from zcache.pageframes.slots import slots_of
from zcache.pages.codec import Codec, decoders, parse_codec
from zcache.pages.tmem import Kind, TmemObject
from zcache.server.rebuild import rebuild
from zcache.store.store import Store
from zcache.testvm.arguments import whole_number
from zcache.testvm.figures import status_kib

REQUEST_PAGES: Final = (1, 8, 32)
DEVICE_BYTES: Final = (1 << 28, 1 << 32, 1 << 36, 1 << 40)
#: Written and read at random over devices of those sizes, in requests of 32 KiB.
SPREAD_PAGES: Final = 8192
REBUILT_PAGES: Final = 1 << 18


def main(words: Sequence[str]) -> int:
    """Prints the tables; exit status 0."""
    parser = argparse.ArgumentParser(prog="scripts/bench store", description=__doc__, epilog=MENTION)
    add = parser.add_argument
    # Of fewer, compressed well, the log has hardly more frames than it keeps open.
    add("--pages", type=whole_number(2048), default=8192, help="pages of each corpus (default: %(default)s)")
    add("--rounds", type=whole_number(), default=7, help="the median of so many (default: %(default)s)")
    add("--codec", type=_codec, action="append", help="lz4, zstd:1, … (repeatable; default: lz4 and zstd:1)")
    add("--seed", type=int, default=1, help="of what is overwritten and trimmed (default: %(default)s)")
    add("--folder", type=Path, help="for the results (default: a new temporary one)")
    arguments = parser.parse_args(words)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-"))
    report = Report(folder, Console(width=150))
    codecs = arguments.codec or [parse_codec("lz4"), parse_codec("zstd:1")]
    measure(report, codecs, arguments.pages, arguments.rounds, arguments.seed)
    report.save()
    report.console.print(f"report.json and plots: {folder}")
    return 0


def _codec(text: str) -> Codec:
    try:
        return parse_codec(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def measure(report: Report, codecs: Sequence[Codec], page_limit: int, rounds: int, seed: int) -> None:
    """Everything about the store, into the report."""
    with report.console.status("gathering pages"):
        corpora = gather(page_limit)
        corpora.append(mixed(corpora, page_limit, seed))
    report.table("corpus", "pages, from the heaps of programs that were started for it", list(map(_described, corpora)))
    costs: list[dict[str, Figure]] = []
    density: list[dict[str, Figure]] = []
    again: list[dict[str, Figure]] = []
    with report.console.status("") as status:
        for codec, allocator in itertools.product(codecs, ALLOCATORS):
            for pages_per_request in REQUEST_PAGES:
                status.update(f"puts and gets: {codec.name}, {allocator}, requests of {pages_per_request * 4} KiB")
                costs.append(cost(corpora[0], codec, allocator, pages_per_request, rounds))
            for corpus in corpora:
                status.update(f"density: {codec.name}, {allocator}, {corpus.name}")
                density.append(density_of(corpus, codec, allocator, seed))
        for corpus in corpora:
            status.update(f"recompression: {corpus.name}")
            again.append(recompression_of(corpus, parse_codec("lz4"), parse_codec("zstd:1")))
        metadata = [metadata_of(corpora[0], codecs[0], allocator) for allocator in ALLOCATORS]
        status.update("devices of several sizes")
        spread = [
            row
            for allocator in ALLOCATORS
            for row in spread_cost(corpora[0], codecs[0], allocator, DEVICE_BYTES, rounds, seed)
        ]
        status.update("a rebuild")
        rebuilt = [rebuild_cost(corpora[-1], codecs[0], allocator, REBUILT_PAGES) for allocator in ALLOCATORS]
    title = f"puts and gets, us a page of CPU ({corpora[0].name}; page loop: {PAGE_LOOP.name})"
    report.table("cost", title, costs)
    title = f"density, pages to frames: fresh, after {CHURN_ROUNDS} rounds of overwrites and trims at {FULL:.0%} full"
    report.table("density", f"{title}, and after a rest", density)
    report.table("recompression", "recompression, on an idle store", again)
    report.table("metadata", f"memory beside the frames ({codecs[0].name})", metadata)
    report.table("spread", f"the same as the device grows ({codecs[0].name}, 32 KiB, sparse)", spread)
    report.table("rebuild", "taking over", rebuilt)
    groups = {
        f"{row['pages']}\n{row['codec']}, {row['allocator']}": {
            "codec alone": float(row["codec's ratio"] or 0),
            "store, fresh": float(row["fresh"] or 0),
            "store, after": float(row["after"] or 0),
            "store, at rest": float(row["at rest"] or 0),
        }
        for row in density
    }
    report.bars("density", "density", groups, "bytes of pages to bytes of memory")


def _described(corpus: Corpus) -> dict[str, Figure]:
    return {
        "pages": corpus.name,
        "count": len(corpus.pages),
        "same-filled %": corpus.same_filled() * 100,
        "duplicates %": corpus.duplicates() * 100,
        "lz4": corpus.ratio("lz4"),
        "zstd:1": corpus.ratio("zstd:1"),
    }


def cost(corpus: Corpus, codec: Codec, allocator: str, pages_per_request: int, rounds: int) -> dict[str, Figure]:
    """Puts and gets of all pages of a corpus, in order; each round fills an empty store."""
    count = len(corpus.pages) // pages_per_request * pages_per_request
    store, thing = new_device(budget_for(allocator, count), codec, allocator, count)
    store.populate()
    data = memoryview(b"".join(corpus.pages[:count]))
    out = memoryview(bytearray(pages_per_request * PAGE_BYTES))  # used again by each request, as nbdkit's buffers are
    size = pages_per_request * PAGE_BYTES
    requests = [(start // PAGE_BYTES, data[start : start + size]) for start in range(0, count * PAGE_BYTES, size)]
    views = [data[start : start + PAGE_BYTES] for start in range(0, count * PAGE_BYTES, PAGE_BYTES)]
    compressed = [codec.compress(view) for view in views]
    decompress = decoders[codec.id]

    def put_all() -> None:
        for first, request in requests:
            store.put(thing, first, request)

    def get_all() -> None:
        for first, _ in requests:
            store.get(thing, first, out)

    def compress_all() -> None:
        for view in views:
            codec.compress(view)

    def decompress_all() -> None:
        for body in compressed:
            decompress(body)

    works = (put_all, compress_all, get_all, decompress_all)
    taken = _turn_about(works, rounds, count, before=lambda: store.flush(thing, 0, count))
    for first, request in requests:
        store.get(thing, first, out)
        assert out == request, "the store gave back other pages than were put"
    check(store)
    put, alone_in, get, alone_out = taken
    return {
        "codec": codec.name,
        "allocator": store.allocator.name,
        "request": f"{pages_per_request * 4} KiB",
        "put us": put,
        "codec in us": alone_in,
        "put/codec": put / alone_in,
        "get us": get,
        "codec out us": alone_out,
        "get/codec": get / alone_out,
    }


def _turn_about(
    works: Sequence[Callable[[], None]], rounds: int, count: int, before: Callable[[], None]
) -> list[float]:
    """us for each of `count` pages, in CPU time: medians."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(rounds + 1):  # the first is for warming up
        before()
        for work, times in zip(works, taken, strict=True):
            begin = time.process_time()
            work()
            times.append((time.process_time() - begin) / count * 1e6)
    return [statistics.median(times[1:]) for times in taken]


def spread_cost(
    corpus: Corpus, codec: Codec, allocator: str, sizes_bytes: Sequence[int], rounds: int, seed: int
) -> list[dict[str, Figure]]:
    """Requests of 32 KiB all over devices of those sizes, turn about; and the memory that each
    takes beside the budget."""
    data = memoryview(b"".join(corpus.pages[:8]))
    out = memoryview(bytearray(8 * PAGE_BYTES))
    stores: list[Store] = []
    fixed_mib: list[float] = []
    works: list[Callable[[], None]] = []
    for size_bytes in sizes_bytes:
        rng = random.Random(seed)
        page_count = size_bytes // PAGE_BYTES
        gc.collect()  # earlier stores, which are in cycles
        before_kib = status_kib(os.getpid(), "RssAnon")
        store, thing = new_device(budget_for(allocator, SPREAD_PAGES), codec, allocator, page_count)
        store.populate()
        held_bytes = (status_kib(os.getpid(), "RssAnon") - before_kib) << 10
        fixed_mib.append((held_bytes - store.frames.slot_count * store.frames.frame_bytes) / (1 << 20))
        firsts = [rng.randrange(page_count // 8) * 8 for _ in range(SPREAD_PAGES // 8)]

        def put_all(store: Store = store, thing: TmemObject = thing, firsts: list[int] = firsts) -> None:
            for first in firsts:
                store.put(thing, first, data)

        def get_all(store: Store = store, thing: TmemObject = thing, firsts: list[int] = firsts) -> None:
            for first in firsts:
                store.get(thing, first, out)

        works += [put_all, get_all]
        stores.append(store)
    taken = _turn_about(works, rounds, SPREAD_PAGES, before=lambda: None)
    for store in stores:
        check(store)
    return [
        {
            "allocator": allocator,
            "device GiB": size_bytes / (1 << 30),
            "put us": taken[2 * number],
            "get us": taken[2 * number + 1],
            "fixed memory MiB": fixed_mib[number],
        }
        for number, size_bytes in enumerate(sizes_bytes)
    ]


def rebuild_cost(corpus: Corpus, codec: Codec, allocator: str, page_count: int) -> dict[str, Figure]:
    """A server's death with so many pages in RAM, as its successor sees it."""
    chosen = ALLOCATORS[allocator]
    frame_count = chosen.frames_for(page_count)
    geometry = Geometry(
        page_count=page_count,
        slot_count=slots_of(frame_count),
        frame_count=frame_count,
        frame_bytes=chosen.frame_bytes,
        encrypt="no",
        allocator=allocator,
        backing=None,
    )
    descriptor = new_descriptor()
    try:
        data = memoryview(b"".join(corpus.pages[:32]))
        dead, pages, _ = _on_image(descriptor, geometry, codec)
        for first in range(0, page_count, 32):
            dead.put(pages, first, data)
        store, pages, image = _on_image(descriptor, geometry, codec)
        begin = time.process_time()
        rebuild(store, pages, image.signs.beat)
        seconds = time.process_time() - begin
        assert store.statistics.stored_pages == page_count
    finally:
        os.close(descriptor)
    return {"allocator": allocator, "pages": page_count, "seconds": seconds, "us a page": seconds / page_count * 1e6}


def _on_image(descriptor: int, geometry: Geometry, codec: Codec) -> tuple[Store, TmemObject, Image]:
    image = Image.open(descriptor, geometry)
    budget_bytes = geometry.frame_count * geometry.frame_bytes
    store = Store(budget_bytes=budget_bytes, codec=codec, allocator=geometry.allocator, image=image)
    pool = store.tmem.new_pool(Kind.PERSISTENT)
    return store, store.tmem.new_object(pool, 0, geometry.page_count, image.section("entries")), image
