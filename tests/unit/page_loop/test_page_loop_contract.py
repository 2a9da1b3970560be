"""What each build of the page loop does, alone: see `zcache.page_loop`."""

import mmap
import random

import pytest

from tests.support.page_loops import page_loops
from tests.support.pages import any_page, page_with_zpage_of, raw_page, same_filled_page, word_filled_page, zero_page
from zcache.allocators.log_append import PythonAppender
from zcache.allocators.log_frame import COUNT_AT, FIRST_RECORD, FRAME_BYTES, FRAME_SHIFT, close_head, open_head
from zcache.errors import PageDamaged
from zcache.page_loop import PageLoop
from zcache.pages.codec import LZ4, RAW, WORD, parse_codec
from zcache.pages.entry import EMPTY, LOST, OFFSET_SHIFT, SAME_FILLED, decode_zpage, zpage_bytes, zpage_tag
from zcache.pages.page_table import MAX_RUN_PAGES

PAGE = 4096
LIMIT = 4032
CODECS = ["lz4", "lz4:16", "lz4:20", "lz4:100", "lz4:1000", "lz4:65537", "zstd:1", "zstd:-7"]

every_loop = pytest.mark.parametrize("loop", page_loops(), ids=lambda loop: loop.name)


def pieces(data: bytes, tags: list[int]) -> list[bytes]:
    """The zpage of each page."""
    found, start = [], 0
    for tag in tags:
        found.append(data[start : start + zpage_bytes(tag)])
        start += zpage_bytes(tag)
    assert start == len(data)
    return found


@every_loop
@pytest.mark.parametrize("name", CODECS)
def test_a_run_comes_back(loop: PageLoop, name: str, rng: random.Random) -> None:
    codec = parse_codec(name)
    encoder = loop.encoder(codec, LIMIT)
    for count in [*range(1, 9), MAX_RUN_PAGES]:
        pages = b"".join(any_page(rng) for _ in range(count))
        data, tags, same_filled, raw = encoder.run(memoryview(pages))
        assert same_filled == sum(tag >= SAME_FILLED or decode_zpage(tag).codec == WORD for tag in tags)
        assert raw == sum(tag < SAME_FILLED and decode_zpage(tag).codec == RAW for tag in tags)
        out = memoryview(bytearray(b"x" * len(pages)))
        loop.decode(tags, pieces(data, tags), out)
        assert out == pages


@every_loop
@pytest.mark.parametrize("name", CODECS)
def test_what_becomes_of_each_kind_of_page(loop: PageLoop, name: str, rng: random.Random) -> None:
    codec = parse_codec(name)
    words = [rng.randrange(1 << 32) for _ in range(20)]
    halves = [rng.randrange(1, 1 << 32) << 32 | 7 for _ in range(20)]
    pages = [zero_page(), *map(same_filled_page, words), *map(word_filled_page, halves), raw_page(rng)]
    data, tags, same_filled, raw = loop.encoder(codec, LIMIT).run(memoryview(b"".join(pages)))
    assert tags[:21] == [SAME_FILLED, *(SAME_FILLED | word for word in words)]
    assert tags[21:41] == [zpage_tag(WORD, 8)] * 20 and tags[41] == zpage_tag(RAW, PAGE)
    assert pieces(data, tags)[21:] == [*(half.to_bytes(8, "little") for half in halves), pages[-1]]
    assert (same_filled, raw) == (41, 1)


@every_loop
def test_a_zpage_of_the_limit_is_kept_and_one_beyond_is_raw(loop: PageLoop, rng: random.Random) -> None:
    codec = parse_codec("lz4")
    for _ in range(20):
        page = page_with_zpage_of(rng, 2000)
        length = len(codec.compress(memoryview(page)))
        assert loop.encoder(codec, length).run(memoryview(page))[1] == [zpage_tag(LZ4, length)]
        assert loop.encoder(codec, length - 1).run(memoryview(page))[1] == [zpage_tag(RAW, PAGE)]


@every_loop
def test_one_page_is_compressed_whatever_is_in_it(loop: PageLoop, rng: random.Random) -> None:
    encoder = loop.encoder(parse_codec("lz4"), LIMIT)
    for page in (zero_page(), raw_page(rng), page_with_zpage_of(rng, 1000)):
        out = memoryview(bytearray(PAGE))
        body = encoder.page(memoryview(page))
        assert len(body) < 100 or len(body) > 900
        if len(body) <= PAGE:
            assert loop.decode_page(body, out) and out == page


class Frames:
    """RAM slots with what a reader and an appender need, by hand: frame n is in slot n."""

    COUNT = 5

    def __init__(self, loop: PageLoop) -> None:
        self.ram = mmap.mmap(-1, self.COUNT * FRAME_BYTES)
        self.home = memoryview(bytearray(4 * self.COUNT)).cast("I")
        for frame in range(1, self.COUNT - 1):
            self.home[frame] = frame  # the last is not in RAM
        self.referenced = bytearray(self.COUNT)
        self.live = memoryview(bytearray(2 * self.COUNT)).cast("H")
        self.weight = memoryview(bytearray(4 * self.COUNT)).cast("I")
        self.reader = loop.reader(self.home, self.ram, self.referenced, FRAME_SHIFT)
        self.appender = loop.appender(self.ram, self.live, self.weight)
        self.head = self.appender.new_head()

    def word(self, frame: int, at: int) -> int:
        return int.from_bytes(self.ram[(frame << FRAME_SHIFT) + at :][:8], "little")

    def bodies(self, entries: list[int]) -> list[bytes]:
        """Where entries say that they are."""
        found = []
        for entry in entries:
            zpage = decode_zpage(entry)
            start = (zpage.frame << FRAME_SHIFT) + zpage.offset
            found.append(self.ram[start : start + zpage.length] if 0 < entry < SAME_FILLED else b"")
        return found


@pytest.fixture(params=page_loops(), ids=lambda loop: loop.name)
def frames(request: pytest.FixtureRequest) -> Frames:
    return Frames(request.param)


def test_what_is_appended_is_in_place_with_its_record(frames: Frames, rng: random.Random) -> None:
    open_head(frames.head, 2, 2)
    bodies = [rng.randbytes(700), b"", rng.randbytes(4096), rng.randbytes(1)]
    tags = [zpage_tag(LZ4, 700), SAME_FILLED | 9, zpage_tag(RAW, 4096), zpage_tag(LZ4, 1)]
    entries: list[int] = []
    assert frames.appender.append(frames.head, b"".join(bodies), tags, entries, 77) == 4
    assert frames.bodies(entries) == bodies and entries[1] == tags[1]
    assert [decode_zpage(entry).offset for entry in (entries[0], entries[2], entries[3])] == [0, 700, 4796]
    assert frames.word(2, COUNT_AT) == 1 and frames.word(2, FIRST_RECORD) == 3 << 56 | 77
    assert (frames.head.fill, frames.head.room) == (4797, FIRST_RECORD - 8)
    assert (frames.live[2], frames.weight[2]) == (3, 4797 + 3 * 8)
    entry = frames.appender.append_one(frames.head, bodies[0], tags[0], 78)
    assert frames.bodies([entry]) == [bodies[0]] and frames.word(2, FIRST_RECORD - 8) == 78
    assert frames.word(2, COUNT_AT) == 2 and frames.live[2] == 4


def test_what_does_not_fit_is_left_and_goes_on_in_the_next_frame(frames: Frames, rng: random.Random) -> None:
    open_head(frames.head, 1, 1)
    bodies = [rng.randbytes(4096) for _ in range(20)]
    bodies[10] = bodies[15] = bodies[16] = b""
    tags = [zpage_tag(RAW, 4096) if body else SAME_FILLED for body in bodies]
    data, entries = b"".join(bodies), list[int]()
    done = frames.appender.append(frames.head, data, tags, entries, 100)
    assert done == len(entries) == 18  # 15 raw pages, and the three beside that take no room, fill a frame
    assert frames.appender.append(frames.head, data, tags, entries, 100) == 18
    assert not frames.appender.append_one(frames.head, bodies[0], tags[0], 1)
    open_head(frames.head, 3, 3)
    assert frames.appender.append(frames.head, data, tags, entries, 100) == 20
    assert frames.bodies(entries) == bodies
    assert frames.word(1, FIRST_RECORD) == 17 << 56 | 100 and frames.word(3, FIRST_RECORD) == 1 << 56 | 118
    assert frames.live.tolist() == [0, 15, 0, 2, 0]


def test_a_closed_head_takes_only_what_takes_no_room(frames: Frames) -> None:
    close_head(frames.head)
    entries: list[int] = []
    tags = [SAME_FILLED | 1, EMPTY, zpage_tag(LZ4, 1)]
    assert frames.appender.append(frames.head, b"x", tags, entries, 1) == 2
    assert entries == tags[:2] and frames.ram[:] == bytes(len(frames.ram)) and not any(frames.live)
    assert frames.appender.append_one(frames.head, b"x", tags[2], 1) == 0


def test_after_an_exception_nothing_was_appended(frames: Frames) -> None:
    open_head(frames.head, 1, 1)
    tags = [zpage_tag(LZ4, 3), "no tag", zpage_tag(LZ4, 3)]
    entries = [5]
    with pytest.raises(TypeError):
        frames.appender.append(frames.head, b"abcdef", [zpage_tag(LZ4, 3), *tags], entries, 1)  # type: ignore[list-item]
    assert entries == [5] and frames.head.fill == 0 and not any(frames.live)
    assert frames.word(1, COUNT_AT) == 0


class NoMemory:
    """For a number that is asked for."""

    def __getitem__(self, _: object) -> int:
        raise MemoryError


def test_without_memory_for_its_numbers_nothing_was_appended(rng: random.Random) -> None:
    """Of the one in Python, which makes them one after the other."""
    frames = Frames(page_loops()[0])
    open_head(frames.head, 1, 1)
    for live, weight in ((NoMemory(), frames.weight), (frames.live, NoMemory())):
        appender = PythonAppender(frames.ram, live, weight)  # type: ignore[arg-type]
        entries: list[int] = []
        with pytest.raises(MemoryError):
            appender.append_one(frames.head, rng.randbytes(9), zpage_tag(LZ4, 9), 1)
        with pytest.raises(MemoryError):
            appender.append(frames.head, rng.randbytes(9), [zpage_tag(LZ4, 9)], entries, 1)
        assert frames.ram[:] == bytes(len(frames.ram)) and not entries
        assert (frames.head.fill, frames.head.room) == (0, FIRST_RECORD)


def test_a_reader_copies_and_marks(frames: Frames, rng: random.Random) -> None:
    open_head(frames.head, 2, 2)
    bodies = [rng.randbytes(size) for size in (900, 50, 8)]
    tags = [zpage_tag(LZ4, 900), zpage_tag(LZ4, 50), zpage_tag(WORD, 8)]
    placed: list[int] = []
    frames.appender.append(frames.head, b"".join(bodies), tags, placed, 0)
    cold = zpage_tag(LZ4, 10) | 4
    table = memoryview(bytearray(8 * 8)).cast("Q")
    for index, entry in enumerate([*placed, EMPTY, SAME_FILLED | 3, cold, LOST, EMPTY]):
        table[index] = entry
    reader = frames.reader
    assert reader.page(table, 0) == bodies[0] and frames.referenced == bytes([0, 0, 1, 0, 0])
    frames.referenced[2] = 0
    assert [reader.page(table, index) for index in range(2, 7)] == [None] * 5  # a word's zpage is not lz4's
    assert not any(frames.referenced)
    assert reader.lz4_run(table, 0, 2) == bodies[:2] and frames.referenced[2]
    assert reader.lz4_run(table, 0, 3) is None and reader.lz4_run(table, 5, 1) is None
    found = reader.run(table, 0, 8)
    assert found == (
        [*placed, EMPTY, SAME_FILLED | 3, cold, LOST, EMPTY],
        [*bodies, b"", b"", b"", b"", b""],
        [5],
        [3, 7],
        True,
    )
    assert reader.run(table, 0, 3) == (placed, bodies, None, None, False)


def test_what_is_nowhere_is_an_error(frames: Frames) -> None:
    """An entry that names a frame that there is not; pages beyond the table."""
    table = memoryview(bytearray(8 * 2)).cast("Q")
    table[0] = zpage_tag(LZ4, 100) | 1000
    for call in (lambda: frames.reader.page(table, 0), lambda: frames.reader.lz4_run(table, 0, 1)):
        with pytest.raises(IndexError):
            call()
    with pytest.raises(IndexError):
        frames.reader.run(table, 0, 1)
    with pytest.raises(IndexError):
        frames.reader.page(table, 2)


@every_loop
def test_damage_is_an_error_or_a_whole_page(loop: PageLoop, rng: random.Random) -> None:
    codec = parse_codec("lz4")
    refused = 0
    for _ in range(500):
        page = page_with_zpage_of(rng, 800)
        body = bytearray(codec.compress(memoryview(page)))
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.5:
            del body[rng.randrange(len(body) // 2, len(body)) :]
        guarded = bytearray(b"\xa5" * (3 * PAGE))
        with memoryview(guarded) as view:
            try:
                loop.decode([zpage_tag(LZ4, len(body))], [bytes(body)], view[PAGE : 2 * PAGE])
            except PageDamaged:
                refused += 1
                with pytest.raises(PageDamaged):
                    loop.decode_lz4([bytes(body)], view[PAGE : 2 * PAGE])
                assert not loop.decode_page(bytes(body), view[PAGE : 2 * PAGE])
        assert guarded[:PAGE] == guarded[2 * PAGE :] == b"\xa5" * PAGE
    assert refused


@every_loop
@pytest.mark.parametrize(("codec", "length"), [(RAW, 4095), (WORD, 7), (LZ4, 4096), (3, 12), (7, 100)])
def test_a_zpage_that_is_no_page_is_damaged(loop: PageLoop, codec: int, length: int) -> None:
    out = memoryview(bytearray(2 * PAGE))
    with pytest.raises(PageDamaged):
        loop.decode([SAME_FILLED, zpage_tag(codec, length)], [b"", b"\xff" * length], out)


@every_loop
def test_a_zpage_without_bytes_is_damaged(loop: PageLoop) -> None:
    """And neither zeros nor what the rest of its entry would be if it repeated a word."""
    out = memoryview(bytearray(PAGE))
    with pytest.raises(PageDamaged):
        loop.decode([zpage_tag(LZ4, 10) | 5], [b""], out)
    with pytest.raises(PageDamaged):
        loop.decode_lz4([b""], out)
    assert not loop.decode_page(b"", out)
    loop.decode([EMPTY], [b""], out)


@every_loop
def test_entries_are_published_in_their_place(loop: PageLoop, rng: random.Random) -> None:
    for count in (1, 2, 63, MAX_RUN_PAGES):
        words = memoryview(bytearray(8 * 70)).cast("Q")
        values = [rng.randrange(1 << 64) for _ in range(count)]
        loop.publish(words, 3, values)
        assert words.tolist() == [0, 0, 0, *values, *[0] * (67 - count)]


@every_loop
def test_what_a_run_holds_if_anything(loop: PageLoop) -> None:
    words = memoryview(bytearray(8 * 70)).cast("Q")
    assert loop.held(words, 3, 64) is None
    words[5] = LOST
    assert loop.held(words, 4, 3) == [0, LOST, 0]
    assert loop.held(words, 6, 64) is None


def test_entries_say_where(frames: Frames) -> None:
    """A frame's last byte has an offset that fits into an entry."""
    open_head(frames.head, 3, 3)
    frames.head.fill = FIRST_RECORD - 1
    entry = frames.appender.append_one(frames.head, b"z", zpage_tag(LZ4, 1), 0)
    assert entry == zpage_tag(LZ4, 1) | (FIRST_RECORD - 1) << OFFSET_SHIFT | 3
