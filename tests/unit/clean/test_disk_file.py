"""A disk file is what it was: nothing is changed by opening it, and nobody else has it
meanwhile."""

import errno
import mmap
import os
import random
from pathlib import Path

import pytest

from zcache.clean.disk_file import DiskFile
from zcache.errors import BadInput
from zcache.linux import libc, memory


@pytest.fixture
def path(tmp_path: Path, rng: random.Random) -> Path:
    image = tmp_path / "image"
    image.write_bytes(rng.randbytes(300_000))
    return image


def read(file: DiskFile, offset: int, length: int) -> bytes:
    out = bytearray(length)
    with memoryview(out) as view:
        file.read(offset, view)
    return bytes(out)


def test_what_was_written_is_in_the_file(path: Path, rng: random.Random) -> None:
    before = path.read_bytes()
    file = DiskFile.open(path, read_only=False)
    assert file.size_bytes == 300_000
    assert read(file, 777, 5000) == before[777:5777]
    data = rng.randbytes(3000)
    file.write(299_999 - 3000, memoryview(data))
    file.flush()
    file.close()
    assert path.read_bytes() == before[: 299_999 - 3000] + data + before[299_999:]


def test_beyond_its_end_there_is_an_error(path: Path) -> None:
    file = DiskFile.open(path, read_only=False)
    os.truncate(path, 100_000)
    with pytest.raises(OSError, match="short read"):
        read(file, 90_000, 20_000)
    file.close()


def test_what_has_no_size_is_refused() -> None:
    with pytest.raises(BadInput, match="Invalid argument"):
        DiskFile.open(Path("/proc/self/mem"), read_only=True)


def test_a_file_is_not_shared_with_a_writer(path: Path) -> None:
    writer = DiskFile.open(path, read_only=False)
    for read_only in (False, True):
        with pytest.raises(BadInput, match="in use"):
            DiskFile.open(path, read_only)
    writer.close()
    readers = [DiskFile.open(path, read_only=True) for _ in range(2)]
    with pytest.raises(BadInput, match="in use"):
        DiskFile.open(path, read_only=False)
    for reader in readers:
        reader.close()


def test_what_cannot_be_opened_is_said(path: Path, tmp_path: Path) -> None:
    for wrong, said in ((tmp_path / "none", "does not exist"), (tmp_path, "directory"), (path / "x", "does not exist")):
        with pytest.raises(BadInput, match=said):
            DiskFile.open(wrong, read_only=False)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadInput, match="neither a regular file"):
        DiskFile.open(tmp_path / "fifo", read_only=False)


def test_an_heir_goes_on_with_the_descriptor(path: Path) -> None:
    file = DiskFile.open(path, read_only=False)
    heir = DiskFile.adopt(os.dup(file.fileno()))
    path.rename(path.with_name("elsewhere"))
    assert heir.size_bytes == file.size_bytes and read(heir, 5, 10) == read(file, 5, 10)
    file.close()
    with pytest.raises(BadInput, match="in use"):
        DiskFile.open(path.with_name("elsewhere"), read_only=False)
    heir.close()


def test_without_a_descriptor_everything_fails() -> None:
    heir = DiskFile.adopt(None)
    with pytest.raises(OSError, match="Bad file"):
        read(heir, 0, 10)
    for call in (lambda: heir.trim(0, 4096), lambda: heir.zero(0, 4096, True, False), heir.flush):
        with pytest.raises(OSError, match="Bad file"):
            call()
    heir.close()


def test_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as sparse:
        sparse.truncate(10 << 20)
        os.pwrite(sparse.fileno(), b"x" * 4096, 4 << 20)
    file = DiskFile.open(path, read_only=False)
    runs = list(file.extents(1 << 20, 8 << 20))
    assert runs[0] == (1 << 20, 3 << 20, True)
    assert sum(length for _, length, _ in runs) == 8 << 20
    assert any(start <= 4 << 20 < start + length for start, length, is_hole in runs if not is_hole)
    assert list(file.extents(8 << 20, 4096)) == [(8 << 20, 4096, True)]
    file.trim(4 << 20, 4096)
    assert read(file, 4 << 20, 4096) == bytes(4096)
    file.write(0, memoryview(b"y" * 100_000))
    assert file.zero(10, 50_000, may_trim=False, is_fast=False)
    assert read(file, 0, 50_020) == b"y" * 10 + bytes(50_000) + b"y" * 10
    file.close()


def test_zeros_are_written_where_they_cannot_be_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "")

    monkeypatch.setattr(libc, "fallocate", refuse)
    before = path.read_bytes()
    file = DiskFile.open(path, read_only=False)
    assert not file.zero(5, 200_000, may_trim=True, is_fast=True)
    assert path.read_bytes() == before
    assert file.zero(5, 200_000, may_trim=True, is_fast=False)
    assert path.read_bytes() == before[:5] + bytes(200_000) + before[200_005:]
    file.trim(0, 4096)  # which says nothing about what is there
    file.close()


def test_the_kernel_keeps_nothing(path: Path, rng: random.Random) -> None:
    """The whole file at once: a kernel drops a part of a large folio with the rest of it."""
    file = DiskFile.open(path, read_only=False)
    with mmap.mmap(file.fileno(), file.size_bytes) as mapped, memoryview(mapped) as view:
        file.write(0, memoryview(rng.randbytes(file.size_bytes)))
        assert memory.resident_share(view) == 1.0
        file.flush()
        assert memory.resident_share(view) == 0.0
        read(file, 0, file.size_bytes)
        assert memory.resident_share(view) == 0.0
    file.close()
