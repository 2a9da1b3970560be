"""What may be used as a backing file, and what is refused: nothing that is not ours is ever
overwritten."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from zcache.beneath import troubles
from zcache.beneath.lookup import Mount
from zcache.errors import BadInput
from zcache.linux import libc
from zcache.steps import STEP_SECONDS
from zcache.tiers import allocation, backing_file
from zcache.tiers.backing_file import BackingFile
from zcache.tiers.header import HEADER

FRAME_BYTES = 4096
NEEDED = 32 * FRAME_BYTES


def open_backing(
    path: Path,
    needed_bytes: int = NEEDED,
    force: bool = False,
    report: Callable[[str], None] = print,
    tell: Callable[[str], None] = print,
) -> BackingFile:
    return BackingFile.open(
        path,
        needed_bytes=needed_bytes,
        new_bytes=needed_bytes,
        frame_bytes=FRAME_BYTES,
        force=force,
        max_slots=100,
        report=report,
        tell=tell,
    )


def refusal(path: Path, needed_bytes: int = NEEDED) -> str:
    with pytest.raises(BadInput) as caught:
        open_backing(path, needed_bytes)
    text = str(caught.value)
    assert text.startswith(f"backing={path}: ") and "\n" not in text
    return text


def test_a_new_file_is_made_large_enough_and_allocated(tmp_path: Path) -> None:
    backing = open_backing(tmp_path / "new")
    assert backing.slot_count == 32
    status = (tmp_path / "new").stat()
    assert status.st_size == 33 * FRAME_BYTES and status.st_blocks * 512 >= status.st_size
    assert status.st_mode & 0o777 == 0o600
    backing.close()


def test_an_empty_file_is_like_a_new_one_and_ours_can_be_used_again(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    open_backing(path).close()
    assert path.read_bytes().startswith(HEADER)
    with path.open("r+b") as file:
        file.seek(5 * FRAME_BYTES)
        file.write(b"an old frame")
    backing = open_backing(path)
    assert backing.slot_count == 32
    backing.close()


def test_a_blank_file_of_the_right_size_is_used_whole(tmp_path: Path) -> None:
    path = tmp_path / "blank"
    path.write_bytes(bytes(64 * FRAME_BYTES))
    backing = open_backing(path)
    assert backing.slot_count == 63
    backing.close()


@pytest.mark.parametrize("where", [0, 1024, 40 * FRAME_BYTES + 17, 64 * FRAME_BYTES - 1])
def test_foreign_content_anywhere_is_refused_and_kept(tmp_path: Path, where: int) -> None:
    path = tmp_path / "foreign"
    content = bytearray(64 * FRAME_BYTES)
    content[where] = 1
    path.write_bytes(content)
    text = refusal(path)
    assert "not zcache's" in text and "force=yes" in text and f"byte {where})" in text
    assert path.read_bytes() == content


def test_foreign_content_in_a_sparse_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(700 << 20)
        file.write(b"precious")
    assert f"byte {700 << 20})" in refusal(path)


def test_force_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(b"\x01" * 64 * FRAME_BYTES)
    backing = open_backing(path, force=True)
    backing.close()
    assert path.read_bytes().startswith(HEADER)


def test_real_file_systems_and_partition_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ext2"
    with path.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["/sbin/mke2fs", "-q", "-F", str(path)], check=True)
    before = path.read_bytes()
    assert "not zcache's" in refusal(path)
    assert path.read_bytes() == before
    table = tmp_path / "mbr"
    table.write_bytes(bytes(510) + b"\x55\xaa" + bytes(4 << 20))
    assert "byte 510)" in refusal(table)


def test_what_cannot_be_a_backing_file(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)
    assert "folder does not exist" in refusal(tmp_path / "no" / "file")
    assert "neither a regular file nor a block device" in refusal(Path("/dev/null"))
    assert refusal(Path("/proc/self/mem")).startswith("backing=/proc/self/mem: Invalid argument; give a block device")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "neither a regular file nor a block device" in refusal(fifo)


def test_a_read_only_file_is_refused_even_to_root(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(bytes(64 * FRAME_BYTES))
    path.chmod(0o444)
    assert "read-only" in refusal(path)


def test_too_small_says_how_much_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(bytes(8 * FRAME_BYTES))
    assert f"a header, are {33 * FRAME_BYTES}" in refusal(path)
    assert path.stat().st_size == 8 * FRAME_BYTES
    backing = open_backing(path, needed_bytes=0)  # overcommit
    assert backing.slot_count == 7
    backing.close()


def test_a_full_file_system_is_found_at_the_start_and_not_filled(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    free_bytes = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    text = refusal(path, needed_bytes=(free_bytes + (1 << 40)) // FRAME_BYTES * FRAME_BYTES)
    assert "no room" in text
    assert not path.exists()
    assert os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize > free_bytes // 2


def test_held_by_another_server(tmp_path: Path) -> None:
    path = tmp_path / "held"
    script = (
        "import sys; from pathlib import Path; from zcache.tiers.backing_file import BackingFile as B\n"
        f"b = B.open(Path({str(path)!r}), needed_bytes=1, new_bytes={NEEDED}, frame_bytes={FRAME_BYTES}, force=0)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        assert "held by another server" in refusal(path)
    open_backing(path).close()


@pytest.mark.parametrize("failing", ["used_otherwise", "make_own", "troubles"])
def test_whatever_fails_a_file_that_was_not_there_goes_and_another_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """As when the folder of loop devices could not be opened."""

    def refuse(*_: object) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    path = tmp_path / "backing"
    monkeypatch.setattr(backing_file, failing, refuse)
    assert "Too many open files" in refusal(path)
    assert not path.exists()
    path.touch()
    assert "Too many open files" in refusal(path)
    assert path.exists()


def test_what_another_server_has_made_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "backing"
    really_open = os.open
    others: list[BackingFile] = []

    def open_late(name: str | Path, flags: int, mode: int = 0o777) -> int:
        if name == path and not others:
            monkeypatch.setattr(os, "open", really_open)
            others.append(open_backing(path))
        return really_open(name, flags, mode)

    monkeypatch.setattr(os, "open", open_late)
    assert "held by another server" in refusal(path)
    (other,) = others
    assert path.stat().st_ino == os.fstat(other.fileno()).st_ino
    other.abandon()
    assert not path.exists()


def test_of_a_large_device_only_what_the_pages_can_need_is_used(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(200 * FRAME_BYTES))
    backing = open_backing(path)
    assert backing.slot_count == 100
    backing.close()


@pytest.mark.parametrize("first", [FRAME_BYTES, 65536])
@pytest.mark.parametrize("then", [FRAME_BYTES, 65536])
@pytest.mark.parametrize("old", [False, True])
def test_its_own_leftover_is_known_whatever_its_frames_were(tmp_path: Path, first: int, then: int, old: bool) -> None:
    """With zbud a frame begins at 4 KiB, which was taken for another's where log came after it."""
    path = tmp_path / "leftover"
    path.write_bytes(bytes(1 << 20))
    opened(path, first)
    with path.open("r+b") as file:
        if old:  # as an older zcache wrote it
            file.write(HEADER.ljust(first, b"\0"))
        file.seek(first)
        file.write(os.urandom((1 << 20) - first))
    opened(path, then)
    opened(path, first)


def opened(path: Path, frame_bytes: int) -> None:
    BackingFile.open(path, needed_bytes=0, new_bytes=0, frame_bytes=frame_bytes, force=False).close()


@pytest.mark.parametrize("frame_bytes", [FRAME_BYTES, 65536])
@pytest.mark.parametrize(
    ("offset", "magic", "what"),
    [
        (4096, "fc4e2ba9", "an array of md's"),
        (4096 + 24, "c68573f64e1a45ca8265f57f48ba6d81", "a bcache or bcachefs device"),
        (65536 + 64, "5f42485266535f4d", "a btrfs file system"),
    ],
)
def test_what_another_has_put_behind_our_header_is_refused(
    tmp_path: Path, frame_bytes: int, offset: int, magic: str, what: str
) -> None:
    """Those leave the first 4 KiB, or more, as they found them; mdadm --metadata=1.2 is one."""
    path = tmp_path / "leftover"
    path.write_bytes(bytes(1 << 20))
    opened(path, frame_bytes)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes.fromhex(magic))
    with pytest.raises(BadInput, match=f"holds {what}"):
        opened(path, frame_bytes)


def test_in_a_header_for_large_frames_nothing_else_may_be(tmp_path: Path) -> None:
    path = tmp_path / "leftover"
    path.write_bytes(bytes(1 << 20))
    opened(path, 65536)
    with path.open("r+b") as file:
        file.seek(60000)
        file.write(b"precious")
    with pytest.raises(BadInput, match="not zcache's"):
        opened(path, FRAME_BYTES)


def test_an_old_backing_file_that_something_else_was_written_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "partitioned"
    path.write_bytes(bytes(64 * FRAME_BYTES))
    open_backing(path).close()
    open_backing(path).close()
    with path.open("r+b") as file:  # a partition table leaves the first 440 bytes alone
        file.seek(510)
        file.write(b"\x55\xaa")
    assert "not zcache's (at byte 0)" in refusal(path)


def test_a_refusal_leaves_links_and_files_as_they_were(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    with pytest.raises(BadInput, match="no room"):
        open_backing(link, 1 << 60)
    assert link.is_symlink() and not target.exists()
    backing = open_backing(link)
    backing.abandon()
    assert link.is_symlink() and not target.exists()
    target.write_bytes(bytes(64 * FRAME_BYTES))
    open_backing(link).abandon()
    assert target.exists()


def test_names_that_cannot_be(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / ("b" * 300), "File name too long"), (tmp_path / "loop", "symbolic link")):
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert reason in refusal(path)


def test_where_o_direct_cannot_be_had_a_write_has_arrived_when_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would fail later, in the page cache, and nobody would know."""
    monkeypatch.setattr(backing_file, "_try_direct", lambda *_: False)
    backing = open_backing(tmp_path / "new")
    flags = []

    def pwritev(_descriptor: int, _frames: object, _offset: int, how: int) -> int:
        flags.append(how)
        return FRAME_BYTES

    monkeypatch.setattr(os, "pwritev", pwritev)
    backing.write(1, [memoryview(bytes(FRAME_BYTES))])
    backing.close()
    assert not backing.direct and flags == [os.RWF_DSYNC]


def test_what_cannot_be_allocated_leaves_a_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(descriptor: int, _mode: int, _offset: int, length: int) -> None:
        os.ftruncate(descriptor, length // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(libc, "fallocate", half)
    path = tmp_path / "empty"
    path.touch()
    assert "no room for" in refusal(path)
    assert path.stat().st_size == 0


def slow_fallocate(progress: list[float]) -> Callable[..., None]:
    def fallocate(_file: int, _mode: int, _offset: int, length: int) -> None:
        progress.append(progress.pop() + length / 1e7)

    return fallocate


def unsupported(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def slow_writes(progress: list[float]) -> Callable[..., int]:
    def pwritev(_file: int, parts: Sequence[memoryview], _offset: int, flags: int) -> int:
        assert flags == os.RWF_DSYNC  # or all of it would be waited for at the end
        progress.append(progress.pop() + len(parts[0]) / 1e7)
        return len(parts[0])

    return pwritev


@pytest.mark.parametrize("way", ["fallocate", "writing"])
def test_a_slow_disk_that_has_to_write_it_all_shows_progress_within_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """vfat and NFSv3 write what is allocated; a card takes 10 MB/s, and a step has a deadline."""
    since_progress = [0.0]
    monkeypatch.setattr(libc, "fallocate", slow_fallocate(since_progress) if way == "fallocate" else unsupported)
    monkeypatch.setattr(os, "pwritev", slow_writes(since_progress))
    path = tmp_path / "new"
    with path.open("wb") as file:
        allocation.allocate(file.fileno(), path, 300 << 20, lambda *_: since_progress.append(0.0))
    assert max(since_progress) < STEP_SECONDS / 4 and len(since_progress) > 4
    assert round(sum(since_progress) * 1e7) >= 300 << 20


def test_where_there_is_no_fallocate_it_is_allocated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start walked the whole file, also one that had all its blocks."""
    monkeypatch.setattr(libc, "fallocate", unsupported)
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    written: list[int] = []
    real = os.pwritev

    def pwritev(descriptor: int, parts: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        written.append(real(descriptor, parts, offset, flags))
        return written[-1]

    monkeypatch.setattr(os, "pwritev", pwritev)
    path = tmp_path / "new"
    open_backing(path).close()
    status = path.stat()
    assert status.st_size == 33 * FRAME_BYTES <= status.st_blocks * 512
    assert sum(written) >= status.st_size
    content = path.read_bytes()
    written.clear()
    open_backing(path).close()
    assert sum(written) <= FRAME_BYTES  # the trial of O_DIRECT
    assert path.read_bytes() == content
    os.truncate(path, FRAME_BYTES)  # one that has holes is another matter
    os.truncate(path, status.st_size)
    open_backing(path).close()
    assert path.stat().st_blocks == status.st_blocks


def test_it_says_how_far_the_allocation_has_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing_file, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(allocation, "ALLOCATED_BYTES", NEEDED // 4)
    told: list[str] = []
    open_backing(tmp_path / "new", report=pytest.fail, tell=told.append).close()
    assert len(told) == 5 and told[0] == f"backing={tmp_path}/new: 24% allocated" and told[4].endswith("100% allocated")


def test_a_mistyped_device_does_not_become_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, without a word."""
    made: list[Path] = []
    monkeypatch.setattr(backing_file, "_open", made.append)
    assert "there is no such device" in refusal(Path("/dev/no-such-disk"))
    assert made == []


def test_a_device_is_not_in_memory_because_its_name_is(tmp_path: Path) -> None:
    """What /dev itself is on does not matter."""
    device = next(path for path in Path("/sys/dev/block").iterdir() if not (path / "loop").exists())
    major, _, minor = device.name.partition(":")
    node = tmp_path / "node"
    try:
        os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
    except PermissionError:
        pytest.skip("only root can make a device")
    assert not any("devtmpfs" in trouble.reason for trouble in troubles.troubles_at(node))


@pytest.mark.parametrize(
    ("file_system", "direct"),
    [("ext4", True), ("overlay", True), ("nfs4", False), ("cifs", False), ("9p", False), ("fuse.sshfs", False)],
)
def test_o_direct_is_not_used_over_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_system: str, direct: bool
) -> None:
    """A killed server does not wait for it, and what it was reading may arrive in its successor's
    memory."""
    monkeypatch.setattr(backing_file, "mount_of", lambda _descriptor: Mount(file_system, None))
    monkeypatch.setattr(backing_file, "_try_direct", lambda *_: True)
    backing = open_backing(tmp_path / "new")
    assert backing.direct is direct
    assert backing.write_flags == (0 if direct else os.RWF_DSYNC)
    backing.close()


def test_a_file_in_memory_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(troubles, "mount_of", lambda _descriptor: Mount("tmpfs", None))
    open_backing(tmp_path / "new", report=said.append).close()
    assert len(said) == 1 and "is in memory (tmpfs)" in said[0]
