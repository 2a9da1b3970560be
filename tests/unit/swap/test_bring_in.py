"""Which pages are brought in, by a process's smaps and pagemap."""

import os
import struct
import tempfile
from pathlib import Path

import pytest

from zcache.linux import memory
from zcache.swap.bring_in import PAGE_BYTES, bring_in, bring_in_open_files

SWAPPED, PRESENT = 1 << 62, 1 << 63
PID = 77


def smaps(*mappings: tuple[int, int, str, int]) -> str:
    """First page, last page and one, permissions, pages in swap."""
    return "".join(
        f"{start * PAGE_BYTES:08x}-{stop * PAGE_BYTES:08x} {permissions} 00000000 00:00 0 [heap]\n"
        f"Size: 8 kB\nSwap: {swapped * PAGE_BYTES >> 10} kB\nSwapPss: 0 kB\nVmFlags: rd wr\n"
        for start, stop, permissions, swapped in mappings
    )


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[int], list[tuple[int, int]]]:
    """Its /proc, the pages that are read of it, and the pages that are asked for ahead."""
    entry = tmp_path / str(PID)
    entry.mkdir()
    words = [0] * 16
    words[2] = words[4] = words[5] = SWAPPED | 7
    words[3] = PRESENT | 7
    words[9] = SWAPPED | 7  # of a mapping that has nothing in swap by now
    (entry / "pagemap").write_bytes(struct.pack("=16Q", *words))
    (entry / "mem").write_bytes(bytes(16 * PAGE_BYTES))
    (entry / "smaps").write_text(smaps((2, 6, "rw-p", 3), (8, 10, "rw-p", 0), (12, 16, "rw-s", 2)))
    read: list[int] = []
    ahead: list[tuple[int, int]] = []
    inode = (entry / "mem").stat().st_ino
    pread = os.pread

    def watched(descriptor: int, size: int, offset: int) -> bytes:
        if os.fstat(descriptor).st_ino == inode:
            read.append(offset // PAGE_BYTES)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", watched)
    monkeypatch.setattr(os, "pidfd_open", lambda _pid: os.open("/dev/null", os.O_RDONLY))
    monkeypatch.setattr(
        memory,
        "process_madvise",
        lambda _fd, start, length, _advice: ahead.append((start // PAGE_BYTES, length // PAGE_BYTES)),
    )
    return tmp_path, read, ahead


def test_private_pages_are_read_and_shared_ones_asked_for(
    process: tuple[Path, list[int], list[tuple[int, int]]],
) -> None:
    proc, read, ahead = process
    assert bring_in(PID, 1 << 20, proc) == 5 * PAGE_BYTES
    assert read == [2, 4, 5] and ahead == [(12, 4)]


def test_it_keeps_its_limit(process: tuple[Path, list[int], list[tuple[int, int]]]) -> None:
    proc, read, ahead = process
    assert bring_in(PID, 2 * PAGE_BYTES, proc) == 2 * PAGE_BYTES
    assert read == [2, 4] and ahead == []
    assert bring_in(PID, 0, proc) == 0


def test_a_process_that_has_ended_needs_nothing(tmp_path: Path) -> None:
    assert bring_in(PID, 1 << 20, tmp_path) == 0


def test_a_real_process_can_be_read() -> None:
    """This one has nothing in swap; its files are of the form that is expected."""
    assert bring_in(os.getpid(), 1 << 20) >= 0


def test_what_a_process_has_open_in_tmpfs_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that there is of a file, and nothing where it has a hole; nor what lies on a disk, of
    which not even the status is asked: its file system may wait for somebody who is frozen."""
    entry = tmp_path / str(PID)
    (entry / "fd").mkdir(parents=True)
    (entry / "mountinfo").write_bytes(Path("/proc/self/mountinfo").read_bytes())
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, tempfile.TemporaryDirectory(dir="/var/tmp") as disk:
        journal, large, other = Path(memory) / "journal", Path(memory) / "large", Path(disk) / "other"
        with journal.open("wb") as file:
            file.write(bytes(3 * PAGE_BYTES))
            file.seek(100 * PAGE_BYTES)
            file.write(bytes(PAGE_BYTES))
        large.write_bytes(bytes(64 * PAGE_BYTES))
        other.write_bytes(bytes(2 * PAGE_BYTES))
        if journal.stat().st_dev == other.stat().st_dev:
            pytest.skip("/dev/shm is no tmpfs here, or /var/tmp is in the same")
        memfd = os.memfd_create("message")
        os.write(memfd, bytes(PAGE_BYTES))
        targets = (journal, journal, large, other, Path(memory), Path(f"/proc/self/fd/{memfd}"), Path("/gone"))
        for number, target in enumerate(targets):
            (entry / "fd" / str(number)).symlink_to(target)
        read: list[tuple[int, int]] = []
        asked: list[int] = []
        pread, fstat, disk_inode = os.pread, os.fstat, other.stat().st_ino

        def watched(descriptor: int, size: int, offset: int) -> bytes:
            read.append((offset, size))
            return pread(descriptor, size, offset)

        def watched_status(descriptor: int) -> os.stat_result:
            asked.append(fstat(descriptor).st_ino)
            return fstat(descriptor)

        monkeypatch.setattr(os, "pread", watched)
        monkeypatch.setattr(os, "fstat", watched_status)
        seen: set[tuple[int, int]] = set()
        assert bring_in_open_files(PID, 8 * PAGE_BYTES, seen, tmp_path) == 5 * PAGE_BYTES
        assert read == [(0, PAGE_BYTES), (0, 3 * PAGE_BYTES), (100 * PAGE_BYTES, PAGE_BYTES)]
        assert journal.stat().st_ino in asked and disk_inode not in asked
        assert journal.stat().st_blocks * 512 == 4 * PAGE_BYTES
        assert bring_in_open_files(PID, 8 * PAGE_BYTES, seen, tmp_path) == 0
        assert bring_in_open_files(PID, 64 * PAGE_BYTES, seen, tmp_path) == 64 * PAGE_BYTES
        os.close(memfd)


def test_a_memfd_is_in_memory_too() -> None:
    """Of a real process, this one."""
    memfd = os.memfd_create("message")
    os.write(memfd, bytes(5 * PAGE_BYTES))
    status = os.fstat(memfd)
    seen: set[tuple[int, int]] = set()
    assert bring_in_open_files(os.getpid(), 1 << 30, seen) >= 5 * PAGE_BYTES
    assert (status.st_dev, status.st_ino) in seen
    os.close(memfd)
