"""What lies below the backing: full file systems, copy on write, loop devices, FUSE, and zcache's
own leftovers.

On images, as root: a machine without loop devices cannot have these tests, and neither what its
kernel cannot mount.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.nbd.conftest import RunningServer, Serve
from tests.nbd.test_bad_input import refusal
from zcache.bench.filesystems.images import IMAGE_MIB, MIB, Bench, neighbour
from zcache.bench.filesystems.overwrite import BLOCK_BYTES
from zcache.bench.filesystems.places import PLACES
from zcache.beneath.own_blocks import copies_on_write, writes_to_new_blocks
from zcache.control.ask import ask
from zcache.errors import BadInput, EnvironmentProblem, SwapError
from zcache.linux import libc
from zcache.swap import backing
from zcache.tiers.backing_file import BackingFile

SIZE = ("size=24M", "budget=4M")
BACKING_MIB = 28


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and loop devices")
    with ExitStack() as undo:
        yield Bench(tmp_path, undo, BACKING_MIB)


def overwrite(server: RunningServer, rounds: int = 3) -> None:
    """All of it, with pages that do not compress; each has to come back."""
    command = [sys.executable, "-P", "-m", "zcache.bench.filesystems.overwrite", str(server.socket), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == '{"lost": 0, "failed_writes": 0}\n'
    assert ask(server.control, "status")["written_back_frames"] * 65536 > BLOCK_BYTES


@pytest.mark.parametrize(
    "name",
    [
        "ext2 (no fallocate)",
        "xfs, reflinked",
        "btrfs, compress",
        "btrfs, copied on write",
        "overlay on btrfs",
    ],
)
def test_a_neighbour_that_fills_the_file_system_costs_no_page(bench: Bench, serve: Serve, name: str) -> None:
    """On btrfs 22,716 of 24,576 pages were lost, for each write took new blocks."""
    try:
        place = PLACES[name](bench)
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    server = serve(*SIZE, f"backing={place.backing}")
    place.fill()
    overwrite(server)
    assert "WARNING: backing" not in server.log.read_text()
    assert server.stop() == 0


def test_an_empty_file_is_made_one_that_is_written_in_place(bench: Bench) -> None:
    """As swap-up makes it, and where the folder has its files compressed."""
    try:
        folder = PLACES["btrfs"](bench).backing.parent
        bench.run("chattr", "+c", folder)
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    path = folder / "swap"
    path.touch()
    with path.open() as file:
        assert copies_on_write(file.fileno())
        inode = path.stat().st_ino
        tier = BackingFile.open(path, needed_bytes=MIB, new_bytes=MIB, frame_bytes=65536, force=False)
        assert not copies_on_write(file.fileno()) and path.stat().st_ino == inode
        tier.close()
        bench.run("btrfs", "subvolume", "snapshot", folder, folder / "snapshot")
        assert writes_to_new_blocks(file.fileno())
        assert path.stat().st_blocks * 512 >= path.stat().st_size > MIB
        BackingFile.open(path, needed_bytes=MIB, new_bytes=MIB, frame_bytes=65536, force=False).close()
        assert not writes_to_new_blocks(file.fileno())
        assert path.stat().st_blocks * 512 >= path.stat().st_size > MIB


def test_in_a_container_it_is_not_seen_what_is_below_and_yet_written_in_place(bench: Bench) -> None:
    try:
        place = PLACES["overlay on btrfs"](bench)
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    upper = next(bench.folder.glob("mount*/upper"))
    hidden = upper.rename(upper.with_name("hidden"))
    BackingFile.open(place.backing, needed_bytes=MIB, new_bytes=MIB, frame_bytes=65536, force=False).close()
    with (hidden / "swap").open() as file:
        assert not copies_on_write(file.fileno())


def test_what_is_made_anew_fits_where_it_was(bench: Bench) -> None:
    """Its old blocks are free by then."""
    try:
        path = PLACES["btrfs, copied on write"](bench).backing
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    with path.open("r+b") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        while size_bytes < IMAGE_MIB * MIB * 6 // 10:
            size_bytes += file.write(os.urandom(MIB))
        file.flush()
        libc.syncfs(file.fileno())
        free = os.statvfs(path)
        assert free.f_bavail * free.f_frsize < size_bytes
        assert copies_on_write(file.fileno())
        BackingFile.open(path, needed_bytes=MIB, new_bytes=MIB, frame_bytes=65536, force=False).close()
        assert not copies_on_write(file.fileno())
    assert path.stat().st_blocks * 512 >= path.stat().st_size == size_bytes


def test_what_is_another_s_on_btrfs_is_refused_and_kept(bench: Bench) -> None:
    try:
        path = PLACES["btrfs"](bench).backing
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    path.write_bytes(b"precious" * MIB)
    with pytest.raises(BadInput, match="not zcache's"):
        BackingFile.open(path, needed_bytes=MIB, new_bytes=MIB, frame_bytes=65536, force=False)
    assert path.read_bytes() == b"precious" * MIB


def test_who_else_writes_the_same_blocks_is_refused(bench: Bench, serve: Serve, tmp_path: Path) -> None:
    """Through a loop device, below one, and beside one: some hundreds of blocks were unreadable
    after that."""
    image = tmp_path / "image"
    server = serve(*SIZE, f"backing={image}")
    one, two = bench.loop(image), bench.loop(image)
    assert f"whose file {image} is held by another server" in refusal(tmp_path, *SIZE, f"backing={one}")
    assert "is held by another server" in refusal(tmp_path, *SIZE, f"backing={one}", "force=yes")
    assert "is held by another server" in refusal(tmp_path, "size=1M", "budget=4M", f"clean=disk:{one}")
    assert server.stop() == 0
    server = serve(*SIZE, f"backing={one}")
    below = f"backing={image}: is below {one}, which is in use"
    assert below in refusal(tmp_path, *SIZE, f"backing={image}")
    assert f"{image} is below {one}, which is in use" in refusal(tmp_path, *SIZE, f"backing={two}")
    assert f"is below {one}" in refusal(tmp_path, "size=1M", "budget=4M", f"clean=disk:{image}:ro")
    overwrite(server, 1)
    assert server.stop() == 0
    serve(*SIZE, f"backing={image}")  # loop devices that nobody uses are no matter


def test_parts_of_a_file_that_do_not_overlap_are_no_matter(bench: Bench, serve: Serve) -> None:
    image = bench.image(3 * BACKING_MIB)
    parts = [
        bench.loop(image, f"--offset={start * MIB}", f"--sizelimit={BACKING_MIB * MIB}") for start in (0, BACKING_MIB)
    ]
    for part in parts:
        serve(*SIZE, f"backing={part}")


def test_a_mounted_file_system_s_image_is_refused(bench: Bench, tmp_path: Path) -> None:
    image = bench.image(64)
    device = bench.loop(image)
    bench.run("mke2fs", "-q", "-t", "ext4", device)
    bench.mounted(device, "ext4")
    line = refusal(tmp_path, *SIZE, f"backing={image}", "force=yes")
    assert f"backing={image}: is below {device}, which is in use" in line


def test_its_own_leftover_is_accepted_with_either_allocator(bench: Bench, serve: Serve) -> None:
    """It was "something that is not zcache's" once zbud had written it, at each boot."""
    device = bench.loop(bench.image(64))
    allocators = []
    for budget in ("4M", "16M", "4M"):
        server = serve("size=67M", f"budget={budget}", f"backing={device}")
        overwrite(server, 1)
        allocators.append(server.status()["allocator"])
        assert server.stop() == 0
    assert allocators == ["zbud", "log", "zbud"]


def test_fuse_is_refused_for_swap(bench: Bench, serve: Serve) -> None:
    """The program that writes it would wait for its own page; the machine stood still after 32
    MiB."""
    try:
        place = PLACES["FUSE (fuse2fs)"](bench)
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    words = [*SIZE, f"backing={place.backing}"]
    with pytest.raises(SwapError, match=r"is on FUSE .* force=yes"):
        backing.refuse_unsafe(words)
    backing.refuse_unsafe([*words, "force=yes"])
    server = serve(*words)
    warnings = [line for line in server.log.read_text().splitlines() if "WARNING: backing" in line]
    assert len(warnings) == 1 and "is on FUSE" in warnings[0]
    assert server.stop() == 0
    with pytest.raises(SwapError, match=r"is on FUSE .* force=yes"):
        backing.refuse_unsafe([f"backing={bench.loop(place.backing, is_direct=False)}"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tmpfs", "is in memory (tmpfs)"),
        ("loop, page cache", "which takes memory to be written"),
        ("loop, sparse file", "is not allocated in full"),
        ("loop, file on btrfs", "takes new blocks when it is written"),
    ],
)
def test_what_may_fail_under_pressure_is_warned_of_in_one_line(
    bench: Bench, serve: Serve, name: str, said: str
) -> None:
    try:
        place = PLACES[name](bench)
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    backing.refuse_unsafe([f"backing={place.backing}"])
    server = serve(*SIZE, f"backing={place.backing}")
    warnings = [line for line in server.log.read_text().splitlines() if "WARNING: backing" in line]
    assert len(warnings) == 1 and said in warnings[0]


def test_the_neighbour_leaves_no_room(bench: Bench) -> None:
    """Or the tests above would show nothing."""
    folder = PLACES["ext2 (no fallocate)"](bench).backing.parent
    neighbour(folder)()
    with pytest.raises(OSError, match="No space left"), (folder / "more").open("wb") as file:
        file.write(bytes(MIB))
