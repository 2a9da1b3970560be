"""`scripts/bench store`: what a put and a get cost in process, beside what the codec alone costs for the same pages.

The codec called through the same package, page by page, is the limit; the ratio to it is what the store adds.
Measured turn about in one run, in CPU time and as the median over rounds, because the machine is never quiet.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from zcache.bench.corpus import PAGE_BYTES, Corpus, python_heap
from zcache.check import check
from zcache.codec import decoders, parse_codec
from zcache.errors import BadInput
from zcache.store import Store
from zcache.testvm.arguments import whole_number
from zcache.tmem import Kind


def main(words: Sequence[str]) -> int:
    """Prints the table; exit status 0."""
    parser = argparse.ArgumentParser(prog="scripts/bench store", description=__doc__)
    parser.add_argument("--pages", type=whole_number(32), default=8192, help="pages of corpus (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=whole_number(1), default=7, help="the median of so many (default: %(default)s)"
    )
    parser.add_argument(
        "--codec", type=_codec_name, action="append", help="lz4, zstd:1, … (repeatable; default: lz4 and zstd:1)"
    )
    arguments = parser.parse_args(words)
    console = Console(width=110)
    corpus = python_heap(arguments.pages)
    console.print(corpus.describe())
    table = Table(box=None)
    for heading in ("codec", "request", "put us/page", "x codec", "get us/page", "x codec", "codec ratio", "density"):
        table.add_column(heading, justify="right")
    for codec_name in arguments.codec or ["lz4", "zstd:1"]:
        for pages_per_request in (1, 8, 32):
            with console.status(f"measuring {codec_name}, requests of {pages_per_request * 4} KiB"):
                table.add_row(*_measure(corpus, codec_name, pages_per_request, arguments.rounds))
    console.print(table)
    return 0


def _codec_name(text: str) -> str:
    try:
        return parse_codec(text).name
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _measure(corpus: Corpus, codec_name: str, pages_per_request: int, rounds: int) -> list[str]:
    count = len(corpus.pages) // pages_per_request * pages_per_request
    codec = parse_codec(codec_name)
    store = Store(budget_bytes=(count + 64) * PAGE_BYTES, codec=codec)
    store.populate()
    thing = store.tmem.new_object(store.tmem.new_pool(Kind.PERSISTENT), 0, count)
    data = memoryview(b"".join(corpus.pages[:count]))
    out = memoryview(bytearray(pages_per_request * PAGE_BYTES))  # used again by each request, as nbdkit's buffers are
    size = pages_per_request * PAGE_BYTES
    spans = [(start // PAGE_BYTES, start, start + size) for start in range(0, count * PAGE_BYTES, size)]
    views = [data[start : start + PAGE_BYTES] for start in range(0, count * PAGE_BYTES, PAGE_BYTES)]
    compressed = [codec.compress(view) for view in views]
    decompress = decoders[codec.id]

    def put_all() -> None:
        for first, start, stop in spans:
            store.put(thing, first, data[start:stop])

    def get_all() -> None:
        for first, _, _ in spans:
            store.get(thing, first, out)

    def compress_all() -> None:
        for view in views:
            codec.compress(view)

    def decompress_all() -> None:
        for body in compressed:
            decompress(body)

    times: dict[Callable[[], None], list[float]] = {
        work: [] for work in (put_all, compress_all, get_all, decompress_all)
    }
    for _ in range(rounds + 1):  # the first is for warming up
        store.flush(thing, 0, count)
        for work, taken in times.items():
            begin = time.process_time()
            work()
            taken.append((time.process_time() - begin) / count * 1e6)
    for first, start, stop in spans:
        store.get(thing, first, out)
        assert out == data[start:stop], "the store gave back other pages than were put"
    check(store)
    put, alone_in, get, alone_out = (statistics.median(taken[1:]) for taken in times.values())
    held = store.statistics
    zpages = held.stored_pages - held.same_filled_pages
    return [
        codec.name,
        f"{pages_per_request * 4} KiB",
        f"{put:.2f}",
        f"{put / alone_in:.2f}",
        f"{get:.2f}",
        f"{get / alone_out:.2f}",
        f"{zpages * PAGE_BYTES / held.compressed_bytes:.2f}",
        f"{held.stored_pages / store.frames.resident:.2f}",
    ]
