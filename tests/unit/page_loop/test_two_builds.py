"""The compiled page loop beside the reference: the same bytes, the same refusals."""

import ctypes
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.page_loops import page_loops
from tests.support.pages import any_page, page_with_zpage_of
from tests.support.stores import get, put, store_with_image
from tests.support.tiers import MemoryTier
from tests.unit.page_loop.test_page_loop_contract import LIMIT, PAGE, Frames, pieces
from zcache.allocators import log_frame
from zcache.allocators.log_frame import close_head, open_head
from zcache.control.check import check
from zcache.errors import PageDamaged
from zcache.image.image import new_descriptor
from zcache.page_loop import PageLoop
from zcache.pages import codec, entry, page_table
from zcache.pages.codec import LZ4, parse_codec
from zcache.pages.entry import LOST, SAME_FILLED, zpage_tag

PACKAGE = Path(log_frame.__file__).parents[1] / "page_loop"

pytestmark = pytest.mark.skipif(len(page_loops()) < 2, reason="NOT compared: no C compiler")


def both() -> tuple[PageLoop, PageLoop]:
    reference, compiled = page_loops()
    return reference, compiled


def decoded(loop: PageLoop, entries: list[int], bodies: list[bytes]) -> bytes | str:
    """What comes of a run."""
    out = bytearray(len(entries) * PAGE)
    with memoryview(out) as view:
        try:
            loop.decode(entries, bodies, view)
        except PageDamaged as damage:
            return str(damage)
    return bytes(out)


@pytest.mark.parametrize("name", ["lz4", "lz4:16", "lz4:1000", "lz4:65537", "zstd:1"])
def test_the_same_zpages_and_the_same_pages(name: str, rng: random.Random) -> None:
    reference, compiled = both()
    coder = parse_codec(name)
    for _ in range(150):
        limit = rng.choice([LIMIT, PAGE, 1500])
        pages = memoryview(b"".join(any_page(rng) for _ in range(rng.choice([1, 2, 8, 33, 64]))))
        encoded = reference.encoder(coder, limit).run(pages)
        assert compiled.encoder(coder, limit).run(pages) == encoded
        data, tags, _, _ = encoded
        assert (
            decoded(reference, tags, pieces(data, tags)) == decoded(compiled, tags, pieces(data, tags)) == bytes(pages)
        )


def test_the_same_of_damaged_zpages(rng: random.Random) -> None:
    reference, compiled = both()
    coder = parse_codec("lz4")
    damaged = 0
    for _ in range(3000):
        body = bytearray(coder.compress(memoryview(page_with_zpage_of(rng, rng.choice([100, 800, 3000])))))
        for _ in range(rng.randrange(3)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        if rng.random() < 0.3:
            del body[rng.randrange(1, len(body)) :]
        kind = rng.choice([LZ4] * 9 + [rng.randrange(8)])
        entries, bodies = [zpage_tag(kind, len(body)), SAME_FILLED], [bytes(body), b""]
        found = decoded(reference, entries, bodies)
        assert decoded(compiled, entries, bodies) == found
        damaged += isinstance(found, str)
    assert 100 < damaged < 2900


def test_the_same_frames(rng: random.Random) -> None:
    """Whatever is appended: memory, books and answers are equal, and so is what is read back."""
    pair = [Frames(loop) for loop in both()]
    for frames in pair:
        open_head(frames.head, 1, 1)
    frame, table = 1, [0]
    for _ in range(300):
        sizes = [rng.choice([0, 0, 8, 40, 1300, 4096]) for _ in range(rng.randrange(1, 30))]
        tags = [zpage_tag(LZ4, size) if size else rng.choice([0, SAME_FILLED | 5, LOST]) for size in sizes]
        data, owner = rng.randbytes(sum(sizes)), rng.randrange(1 << 50)
        answers = []
        for frames in pair:
            entries: list[int] = []
            answers.append((frames.appender.append(frames.head, data, tags, entries, owner), entries))
        assert answers[0] == answers[1]
        table = answers[0][1] or table
        one = rng.randbytes(rng.randrange(1, 4097))
        placed = [frames.appender.append_one(frames.head, one, zpage_tag(LZ4, len(one)), owner) for frames in pair]
        assert placed[0] == placed[1]
        if not placed[0]:
            frame = frame % 3 + 1
            for frames in pair:
                open_head(frames.head, frame, frame)
        words = memoryview(bytearray(b"".join(word.to_bytes(8, "little") for word in table))).cast("Q")
        runs = [frames.reader.run(words, 0, len(words)) for frames in pair]
        assert runs[0] == runs[1]
        lz4_runs = [frames.reader.lz4_run(words, 0, len(words)) for frames in pair]
        assert lz4_runs[0] == lz4_runs[1]
        first = [frames.reader.page(words, 0) for frames in pair]
        assert first[0] == first[1]
        assert pair[0].referenced == pair[1].referenced
    assert pair[0].ram[:] == pair[1].ram[:]
    assert (pair[0].live, pair[0].weight) == (pair[1].live, pair[1].weight)


@pytest.mark.parametrize("allocator", ["log", "zbud"])
def test_each_takes_over_from_the_other(allocator: str, rng: random.Random) -> None:
    frame_bytes, budget_frames = (1 << 16, 40) if allocator == "log" else (PAGE, 200)
    for dying, successor in (both(), both()[::-1]):
        tier, descriptor = MemoryTier(64, frame_bytes), new_descriptor()
        pages = [any_page(rng) for _ in range(200)]
        store, thing = store_with_image(descriptor, 256, budget_frames, tier, allocator=allocator, loop=dying)
        put(store, thing, 7, *pages)
        put(store, thing, 7 + 200, any_page(rng))
        store, thing = store_with_image(descriptor, 256, budget_frames, tier, allocator=allocator, loop=successor)
        assert store.loop is successor
        for index, page in enumerate(pages, 7):
            assert get(store, thing, index) == page
        put(store, thing, 3, *pages[:8])
        assert get(store, thing, 3, 8) == b"".join(pages[:8])
        check(store)


def test_the_numbers_in_c_are_those_in_python() -> None:
    from zcache.page_loop import _compiled

    in_python = {"LOG_FRAME_BYTES": log_frame.FRAME_BYTES}
    for module in (entry, codec, page_table, log_frame):
        in_python |= {name: value for name, value in vars(module).items() if name in _compiled.constants}
    assert in_python == _compiled.constants
    defined = re.findall(r"^#define ([A-Z0-9_]+) \S", (PACKAGE / "page_loop.h").read_text(), re.MULTILINE)
    assert {name for name in defined if name != "PY_SSIZE_T_CLEAN"} == _compiled.constants.keys()


def test_what_c_is_given_wrongly_it_refuses() -> None:
    from zcache.page_loop import _compiled

    page = memoryview(bytearray(PAGE))
    encoder = _compiled.Encoder(1, LIMIT)
    frames = Frames(both()[1])
    open_head(frames.head, 1, 1)
    refused: list[Callable[[], object]] = [
        lambda: encoder.page(page[:-1]),
        lambda: encoder.run(memoryview(bytes(65 * PAGE))),
        lambda: encoder.run(page[1:]),
        lambda: _compiled.Encoder(1, PAGE + 1),
        lambda: _compiled.decompress(b"x", page[:100]),
        lambda: _compiled.decode([0], [], page),
        lambda: _compiled.decode_lz4([b"x"] * 2, page),
        lambda: _compiled.decode([1 << 64], [b""], page),
        lambda: _compiled.publish(page.cast("Q"), 512, [1]),
        lambda: _compiled.held(page.cast("Q"), 500, 13),
        lambda: _compiled.publish(page.cast("Q"), -1, [1]),
        lambda: _compiled.publish(page.cast("Q"), 0, [1] * 65),
        lambda: frames.reader.page(page.cast("Q"), -1),
        lambda: frames.reader.run(page.cast("Q"), 500, 13),
        lambda: frames.appender.append(log_frame.PythonHead(), b"", [], [], 0),
        lambda: frames.appender.append(frames.head, b"x", [zpage_tag(LZ4, 2)], [], 0),
        lambda: frames.appender.append(frames.head, b"x", [-1], [], 0),
        lambda: _compiled.Reader(frames.home, frames.ram, frames.referenced, 64),
        lambda: _compiled.Reader(frames.home, frames.ram, frames.referenced, -1),
        lambda: frames.reader.run(memoryview(bytearray(17))[1:], 0, 2),
        lambda: _compiled.publish(memoryview(bytearray(17))[1:], 0, [1]),
    ]
    for call in refused:
        with pytest.raises((ValueError, IndexError, TypeError, OverflowError)):
            call()
    wrong_heads = {"base": (5 << 16, 100, -65536), "frame": (0, 5), "fill": (-1, 1 << 20), "room": (65536, 4001)}
    for name, wrong in ((name, wrong) for name, values in wrong_heads.items() for wrong in values):
        open_head(frames.head, 1, 1)
        setattr(frames.head, name, wrong)
        with pytest.raises(IndexError):
            frames.appender.append_one(frames.head, b"x", zpage_tag(LZ4, 1), 0)
    close_head(frames.head)
    for wrong in (-1000, 1 << 62):
        frames.head.fill = wrong
        with pytest.raises(IndexError):
            frames.appender.append_one(frames.head, b"x", zpage_tag(LZ4, 1), 0)
    assert frames.ram[:] == bytes(len(frames.ram))


def test_a_library_without_lz4_is_refused_and_the_one_that_was_there_stays(rng: random.Random) -> None:
    from zcache.page_loop import _compiled

    libc = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc.so" in line)
    with pytest.raises(ImportError, match="does not show its lz4"):
        _compiled.use_lz4(libc)
    test_the_same_zpages_and_the_same_pages("lz4", rng)


def test_nothing_of_it_can_be_taken_for_somebody_elses() -> None:
    """A function of the same name in another library would replace one of ours."""
    from zcache.page_loop import _compiled

    assert _compiled.__file__
    library = ctypes.CDLL(_compiled.__file__)
    assert library.PyInit__compiled
    for name in ("decompress", "decode", "held", "publish", "lz4_compress", "reader_spec"):
        assert not hasattr(library, name)
