"""A clean disk never shows what is not in its file, whatever fails, and whoever reads and writes at
once."""

import random
import threading
from pathlib import Path

import pytest

from tests.support.disks import clean_disk, read
from tests.support.pages import any_page, page_with_zpage_of
from tests.support.stores import new_object, put, small_store
from zcache.control.check import check

PAGES = 64


@pytest.fixture
def content(rng: random.Random) -> bytes:
    return b"".join(page_with_zpage_of(rng, 1000) for _ in range(PAGES))


def test_what_was_read_is_read_from_ram(tmp_path: Path, content: bytes) -> None:
    disk, file = clean_disk(tmp_path / "image", content=content)
    assert read(disk, 8192, 40_960) == content[8192 : 8192 + 40_960]
    assert file.reads == 1
    assert read(disk, 8192, 40_960) == content[8192 : 8192 + 40_960]
    assert read(disk, 9000, 777) == content[9000:9777]
    assert file.reads == 1
    assert read(disk, 0, 65_536) == content[:65_536]  # before and behind what is there
    assert file.reads == 3
    status = disk.status()
    assert (status["gets"], status["misses"], status["file_reads"]) == (10 + 10 + 1 + 16, 10 + 6, 3)
    disk.close()


def test_a_write_is_in_the_file_and_the_old_page_is_gone(tmp_path: Path, content: bytes, rng: random.Random) -> None:
    disk, file = clean_disk(tmp_path / "image", content=content)
    read(disk, 0, len(content))
    data = rng.randbytes(10_000)
    disk.write(5000, memoryview(data))
    after = content[:5000] + data + content[15_000:]
    assert (tmp_path / "image").read_bytes() == after
    reads = file.reads
    assert read(disk, 0, len(content)) == after
    assert file.reads == reads + 1
    disk.close()


def test_the_end_of_a_file_that_is_no_whole_page(tmp_path: Path, content: bytes) -> None:
    odd = content[:-1000]
    disk, _ = clean_disk(tmp_path / "image", content=odd)
    assert disk.size_bytes == len(odd)
    for offset in (0, len(odd) - 5000, len(odd) - 3096, len(odd) - 1):
        for _ in range(2):
            assert read(disk, offset, len(odd) - offset) == odd[offset:]
    disk.write(len(odd) - 10, memoryview(b"0123456789"))
    assert read(disk, len(odd) - 20, 20) == odd[-20:-10] + b"0123456789"
    assert list(disk.extents(0, len(odd)))
    disk.close()
    tiny, _ = clean_disk(tmp_path / "tiny", content=b"abc")
    assert read(tiny, 1, 2) == b"bc"
    tiny.write(0, memoryview(b"x"))
    tiny.flush()
    assert read(tiny, 0, 3) == b"xbc"
    tiny.close()


def test_a_write_that_fails_leaves_what_the_file_holds(tmp_path: Path, content: bytes, rng: random.Random) -> None:
    disk, file = clean_disk(tmp_path / "image", content=content)
    read(disk, 0, len(content))
    file.failing_writes, file.rng = 1, rng
    with pytest.raises(OSError, match="Input/output"):
        disk.write(4096, memoryview(rng.randbytes(20_000)))
    assert disk.troubles() == ["clean export image: write: Input/output error"]
    assert read(disk, 0, len(content)) == (tmp_path / "image").read_bytes()
    disk.write(4096, memoryview(bytes(4096)))
    assert disk.troubles() == []
    assert read(disk, 0, len(content)) == (tmp_path / "image").read_bytes()
    disk.close()


def test_a_flush_that_fails_leaves_nothing_in_the_pool(tmp_path: Path, content: bytes) -> None:
    disk, file = clean_disk(tmp_path / "image", content=content)
    read(disk, 0, len(content))
    file.failing_flushes = 1
    with pytest.raises(OSError, match="Input/output"):
        disk.flush()
    assert disk.store.statistics.ephemeral_pages == 0
    assert read(disk, 0, len(content)) == content
    disk.flush()
    disk.close()


def test_a_read_that_fails_puts_nothing(tmp_path: Path, content: bytes) -> None:
    disk, file = clean_disk(tmp_path / "image", content=content)
    file.failing_reads = 1
    with pytest.raises(OSError, match="Input/output"):
        read(disk, 0, 8192)
    assert disk.store.statistics.ephemeral_pages == 0 and disk.troubles()
    assert read(disk, 0, 8192) == content[:8192] and not disk.troubles()
    disk.close()


def test_a_read_under_way_when_a_write_begins_is_not_kept(tmp_path: Path, content: bytes) -> None:
    """It has the old bytes, and may: but nobody after the write."""
    disk, file = clean_disk(tmp_path / "image", content=content)

    def write_meanwhile() -> None:
        file.after_read = lambda: None
        disk.write(4096, memoryview(bytes(4096)))

    file.after_read = write_meanwhile
    assert read(disk, 0, 12_288) == content[:12_288]
    assert read(disk, 0, 12_288) == content[:4096] + bytes(4096) + content[8192:12_288]
    disk.close()


def test_a_read_that_begins_within_a_write_is_not_kept(tmp_path: Path, content: bytes) -> None:
    disk, file = clean_disk(tmp_path / "image", content=content)

    def read_meanwhile() -> None:
        file.before_write = lambda: None
        assert read(disk, 0, 12_288) == content[:12_288]

    file.before_write = read_meanwhile
    disk.write(4096, memoryview(bytes(4096)))
    assert read(disk, 0, 12_288) == content[:4096] + bytes(4096) + content[8192:12_288]
    disk.close()


def test_a_read_beside_a_write_of_other_pages_is_kept(tmp_path: Path, content: bytes) -> None:
    disk, file = clean_disk(tmp_path / "image", content=content)
    file.after_read = lambda: disk.write(40_960, memoryview(bytes(4096)))
    read(disk, 0, 12_288)
    file.after_read = lambda: None
    reads = file.reads
    assert read(disk, 0, 12_288) == content[:12_288] and file.reads == reads
    disk.close()


def test_a_put_that_fails_fails_no_read(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, _ = clean_disk(tmp_path / "image", content=content)

    def fail(*_arguments: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(disk.store, "put", fail)
        assert read(disk, 0, 8192) == content[:8192]
    assert "MemoryError" in disk.troubles()[0]
    disk.close()


@pytest.mark.parametrize("piece", [512, 1000, 1024, 4095, 10_000, 10_240])
def test_a_scan_in_pieces_is_one_reading(tmp_path: Path, content: bytes, piece: int) -> None:
    """Each page is read in several requests, once."""
    disk, _ = clean_disk(tmp_path / "image", small_store(128, admit="reused"), content=content)
    for offset in range(0, len(content), piece):
        length = min(piece, len(content) - offset)
        assert read(disk, offset, length) == content[offset : offset + length]
    assert disk.store.statistics.ephemeral_pages == 0
    for offset in range(0, len(content), piece):
        read(disk, offset, min(piece, len(content) - offset))
    assert disk.store.statistics.ephemeral_pages > 0
    disk.close()


def test_a_disk_that_goes_takes_its_pages_along(tmp_path: Path, content: bytes, rng: random.Random) -> None:
    store = small_store(64)
    swap = new_object(store, 8)
    pages = [page_with_zpage_of(rng, 900) for _ in range(8)]
    put(store, swap, 0, *pages)
    one, _ = clean_disk(tmp_path / "one", store, content=content)
    other, _ = clean_disk(tmp_path / "other", store, content=content[::-1])
    read(one, 0, 65_536)
    read(other, 0, 65_536)
    one.close()
    check(store)
    assert store.statistics.ephemeral_pages == 16
    other.close()
    check(store)
    assert store.statistics.ephemeral_pages == 0 and store.statistics.stored_pages == 8


@pytest.mark.parametrize("admit", ["always", "reused"])
def test_random_requests_of_many_threads(tmp_path: Path, rng: random.Random, admit: str) -> None:
    """Each thread owns a part of the disk and knows what is in it, but pages are shared at the
    seams; all share a budget of a few frames with swap. Reads and writes fail now and then."""
    store = small_store(24, 200, admit=admit)
    swap = new_object(store, 64)
    size = 4096 * 48 - 1700
    path = tmp_path / "image"
    path.write_bytes(rng.randbytes(size))
    disk, file = clean_disk(path, store)
    parts = 4
    found: list[BaseException] = []

    def work(start: int, stop: int, rng: random.Random) -> None:
        model = bytearray(path.read_bytes()[start:stop])
        unsure: set[int] = set()  # bytes of writes that failed
        try:
            for _ in range(400):
                offset = rng.randrange(start, stop)
                length = rng.randrange(1, min(stop - offset, rng.choice([100, 9000, 60_000])) + 1)
                inside = slice(offset - start, offset - start + length)
                try:
                    match rng.choice(["read"] * 6 + ["write", "write", "zero", "trim", "flush", "fail"]):
                        case "read":
                            got = read(disk, offset, length)
                            if not unsure.intersection(range(inside.start, inside.stop)):
                                assert got == model[inside]
                        case "write":
                            data = b"".join(any_page(rng) for _ in range(length // 4096 + 1))[:length]
                            unsure.update(range(inside.start, inside.stop))
                            disk.write(offset, memoryview(data))
                            model[inside] = data
                            unsure.difference_update(range(inside.start, inside.stop))
                        case "zero":
                            unsure.update(range(inside.start, inside.stop))
                            disk.zero(offset, length)
                            model[inside] = bytes(length)
                            unsure.difference_update(range(inside.start, inside.stop))
                        case "trim":
                            disk.trim(offset, length)
                            model[inside] = bytes(length)
                        case "flush":
                            disk.flush()
                        case "fail":
                            setattr(file, rng.choice(["failing_reads", "failing_writes", "failing_flushes"]), 1)
                except OSError:
                    pass
            whole = path.read_bytes()[start:stop]
            assert all(whole[n] == model[n] for n in range(stop - start) if n not in unsure)
        except BaseException as error:
            found.append(error)

    edges = [0, *sorted(rng.sample(range(1, size), parts - 1)), size]
    threads = [
        threading.Thread(target=work, args=(*edges[n : n + 2], random.Random(rng.random()))) for n in range(parts)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        index = rng.randrange(60)
        put(store, swap, index, *(any_page(rng) for _ in range(4)))
        if rng.random() < 0.3:
            store.flush(swap, 0, 64)
    for thread in threads:
        thread.join()
    if found:
        raise found[0]
    file.failing_reads = file.failing_writes = file.failing_flushes = 0
    assert read(disk, 0, size) == path.read_bytes()
    check(store)
    disk.close()
    store.flush(swap, 0, 64)
    check(store)
    assert not store.frames.resident
