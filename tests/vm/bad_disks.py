"""The guest's half of test_bad_disks.py: a server on disks that are really bad, by device-mapper,
nbdkit's filters and a full file system.

Runs as root in the test VM: the scenes that are named, or all (some 15 minutes under emulation):

    scripts/vm --memory 600M --disk 200M --disk 64M --timeout 1500 -- \\
        .venv/bin/python -m tests.vm.bad_disks

In each scene a client writes more than the RAM holds and reads it page by page: every page is what
was last written, or an error that the scene expects, and never anything else. What is counted and
what `zcache status` says is looked at while the disk is bad and when it is well again. The first
thing that is not as it should be is an AssertionError, and exit status 1.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import nbd

from tests.nbd.conftest import RunningServer
from zcache.control.answers import TROUBLES
from zcache.control.ask import ask
from zcache.image.image import new_descriptor
from zcache.keeper.state import StateFolder
from zcache.swap.buildup import Options
from zcache.swap.nbd_device import RESEND_SECONDS, attach
from zcache.swap.up import swap_area
from zcache.tiers.backoff import LAST_REST_SECONDS, PATIENCE_SECONDS

PAGE = 4096
PAGES = 384
BUDGET_PAGES = 128
#: Pages of a write: 128 KiB, as the kernel's are.
RUN = 32
SIZES = (f"size={PAGES * PAGE}", f"budget={BUDGET_PAGES * PAGE}")
#: What a guest under emulation may add to a duration.
SLACK_SECONDS = 5.0
DISK = Path("/dev/disk/by-id/virtio-vmdisk0")
SECOND_DISK = Path("/dev/disk/by-id/virtio-vmdisk1")


class GuestServer(RunningServer):
    """Without the look at the set-up, which takes seconds here."""

    program = (sys.executable, "-P", "-m", "nbd_plugin.serve")
    start_seconds = 120


class Client:
    """Writes and reads a server's device and knows what should be there."""

    def __init__(self, server: GuestServer) -> None:
        self.server = server
        self.connection = server.connect()
        self.model: dict[int, int | None] = {}  # page to the seed of its bytes; None: lost
        self._seeds = iter(range(1, 1 << 30))

    @staticmethod
    def bytes_of(seed: int) -> bytes:
        """A page that does not compress."""
        return random.Random(seed).randbytes(PAGE)

    def write(self, first: int = 0, count: int = PAGES) -> tuple[int, list[float]]:
        """In runs; returns how many were refused, with ENOSPC, and how long those took."""
        refused: list[float] = []
        for start in range(first, first + count, RUN):
            seeds = [next(self._seeds) for _ in range(min(RUN, first + count - start))]
            begin = time.monotonic()
            try:
                self.connection.pwrite(b"".join(map(self.bytes_of, seeds)), start * PAGE)
                self.model.update(enumerate(seeds, start))
            except nbd.Error as error:
                refused.append(time.monotonic() - begin)
                assert error.errno == "ENOSPC", error
                for page, seed in enumerate(seeds, start):  # those before the one that found no room are stored
                    self.model[page] = seed if self.read(page) == self.bytes_of(seed) else None
        return len(refused), refused

    def read(self, page: int) -> bytes | None:
        """None: EIO."""
        try:
            return bytes(self.connection.pread(PAGE, page * PAGE))
        except nbd.Error as error:
            assert error.errno == "EIO", error
            return None

    def look(self) -> list[int]:
        """Read all pages, singly: those that are errors though their write was taken. Nothing is
        ever wrong."""
        errors = []
        for page, seed in self.model.items():
            got = self.read(page)
            if seed is None:
                assert got is None, f"page {page} is lost and was read"
            elif got is None:
                errors.append(page)
            else:
                assert got == self.bytes_of(seed), f"page {page} is wrong"
        return errors

    def expected(self, page: int) -> bytes | None:
        """What was written there last; None if that was refused."""
        seed = self.model[page]
        return None if seed is None else self.bytes_of(seed)

    def lost(self) -> list[int]:
        return [page for page, seed in self.model.items() if seed is None]

    def write_again(self, pages: list[int]) -> None:
        for page in pages:
            assert self.write(page, 1)[0] == 0, page

    def reasons(self) -> str:
        """What the status says is wrong, in one text; the command for people says the same."""
        status = self.server.status()
        assert status["state"] == ("degraded" if status["reasons"] else "ok")
        return "\n".join(status["reasons"])

    def wait_until_well(self, seconds: float = LAST_REST_SECONDS) -> None:
        """No reason left; a slow disk is remembered for a minute, and is not waited for."""
        deadline = time.monotonic() + seconds + SLACK_SECONDS
        while [reason for reason in self.reasons().splitlines() if "is slow" not in reason]:
            assert time.monotonic() < deadline, self.reasons()
            time.sleep(0.05)

    def is_whole(self) -> None:
        """Everything is there, and the books balance."""
        assert self.look() == [] and self.lost() == []
        self.server.check()


@contextlib.contextmanager
def serving(backing: Path, *words: str, descriptors: tuple[int, ...] = ()) -> Iterator[Client]:
    folder = Path(f"/tmp/server{time.monotonic_ns()}")
    folder.mkdir()
    server = GuestServer(folder, (*SIZES, f"backing={backing}", "force=yes", *words), descriptors=descriptors)
    wait_until(server.control.exists, "the server does not answer")
    client = Client(server)
    try:
        yield client
    finally:
        client.connection.shutdown()
        assert server.stop() == 0, server.log.read_text()


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def memory_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * PAGE >> 20


def run(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


class MappedDisk:
    """A device-mapper device over the whole of a disk, whose behaviour can be changed under
    load."""

    def __init__(self, disk: Path = DISK) -> None:
        os.environ["DM_DISABLE_UDEV"] = "1"  # its node is made by dmsetup, at once
        for module in ("dm-mod", "dm-flakey", "dm-delay"):
            run("modprobe", module)
        self.disk = disk.resolve()
        self._sectors = int(run("blockdev", "--getsz", self.disk)) - 2048  # some are left to be moved into
        run("dmsetup", "create", "bad", "--table", self._table("linear {disk} 0"))
        self.path = Path("/dev/mapper/bad")

    def be(self, target: str) -> None:
        run("dmsetup", "reload", "bad", "--table", self._table(target))
        run("dmsetup", "suspend", "--nolockfs", "bad")
        run("dmsetup", "resume", "bad")

    def be_well(self) -> None:
        self.be("linear {disk} 0")

    def remove(self) -> None:
        run("dmsetup", "remove", "--retry", "bad")

    def _table(self, target: str) -> str:
        return f"0 {self._sectors} " + target.format(disk=self.disk)


@contextlib.contextmanager
def mapped_disk() -> Iterator[MappedDisk]:
    disk = MappedDisk()
    try:
        yield disk
    finally:
        disk.be_well()
        disk.remove()


# -- device-mapper
# ------------------------------------------------------------------------------------------------


def write_errors() -> None:
    """dm-flakey's error_writes. While RAM has room nobody notices; then a write fails, after the
    patience, and the next ones at once; what was stored stays; the frames go below when the disk is
    well."""
    with mapped_disk() as disk, serving(disk.path) as client:
        client.write(0, BUDGET_PAGES)
        disk.be("flakey {disk} 0 0 60 1 error_writes")
        refused, seconds = client.write(BUDGET_PAGES, 8 * RUN)
        assert refused >= 4, refused
        assert seconds[0] < PATIENCE_SECONDS + SLACK_SECONDS, seconds
        assert sorted(seconds)[len(seconds) // 2] < PATIENCE_SECONDS / 2, seconds
        assert client.look() == []
        reasons = client.reasons()
        assert "writeback has been failing" in reasons and "EIO: Input/output error" in reasons, reasons
        assert f"{len(client.lost())} pages lost" in reasons, reasons
        status = client.server.status()
        assert status["writeback_errors"] and status["writeback_kept_frames"] and status["failed_puts"]
        said = run(sys.executable, "-P", "-m", "zcache.client.command", "status", "--control", client.server.control)
        assert "state: DEGRADED" in said and "EIO: Input/output error" in said and "pages lost" in said, said
        tries, begin = client.server.status()["writeback_errors"], time.monotonic()
        time.sleep(2 * LAST_REST_SECONDS + 1)
        more = client.server.status()["writeback_errors"] - tries
        assert 1 <= more <= (time.monotonic() - begin) / LAST_REST_SECONDS + 1, more
        disk.be_well()
        wait_until(lambda: "writeback" not in client.reasons(), "not noticed", LAST_REST_SECONDS + SLACK_SECONDS)
        client.write_again(client.lost())
        client.wait_until_well()
        client.is_whole()


def read_errors() -> None:
    """dm's error target. Pages in RAM are served; the others are EIO, and back when the disk is."""
    with mapped_disk() as disk, serving(disk.path) as client:
        client.write()
        disk.be("error")
        errors = client.look()
        assert PAGES // 2 <= len(errors) < PAGES, len(errors)
        status = client.server.status()
        assert status["fetch_errors"] and status["fetch_retries"]
        assert f"{len(errors)} frames below could not be read" in client.reasons(), client.reasons()
        disk.be_well()
        client.is_whole()
        client.wait_until_well()


def gone_one_second_in_four() -> None:
    """dm-flakey without features: for a second there is no disk, then for three there is. Nobody is
    told."""
    with mapped_disk() as disk, serving(disk.path) as client:
        disk.be("flakey {disk} 0 3 1")
        begin = time.monotonic()
        while time.monotonic() < begin + 12:
            assert client.write() == (0, [])
            assert client.look() == []
        status = client.server.status()
        assert status["writeback_errors"] or status["fetch_retries"], "the disk was never gone"
        assert not status["failed_puts"] and not status["fetch_errors"]
        disk.be_well()
        client.wait_until_well()
        client.is_whole()


def flipped_bits() -> None:
    """A bit in every slot, and then in one of sixteen, on the disk itself: EIO for those pages,
    until the bits are right again or the pages are written."""
    with mapped_disk() as disk, serving(disk.path) as client:
        client.write()
        slots = range(1, client.server.status()["backing_capacity_frames"] + 1)
        flip(disk.disk, slots)
        errors = client.look()
        assert PAGES // 2 <= len(errors) < PAGES, len(errors)
        assert f"{len(errors)} frames below failed their seal" in client.reasons(), client.reasons()
        assert client.server.status()["checksum_errors"] == len(errors)
        flip(disk.disk, slots)
        assert client.look() == []
        client.wait_until_well()
        flip(disk.disk, slots[::16])
        errors = client.look()
        assert 0 < len(errors) <= len(slots) // 16 + 1, errors
        assert f"{len(errors)} frame" in client.reasons() and "failed their seal" in client.reasons()
        while errors := client.look():  # those that had been in RAM come to light as they leave it
            client.write_again(errors)
        client.wait_until_well()
        client.is_whole()


def frames_in_the_wrong_place() -> None:
    """The disk answers each read with the next frame's bytes: all of them sound, none of them
    right."""
    with mapped_disk() as disk, serving(disk.path) as client:
        client.write()
        disk.be("linear {disk} 8")
        errors = client.look()
        assert PAGES // 2 <= len(errors) < PAGES, len(errors)
        assert "failed their seal" in client.reasons()
        disk.be_well()
        client.is_whole()
        client.wait_until_well()


def flip(disk: Path, slots: Iterable[int]) -> None:
    """One bit in each, on the medium."""
    descriptor = os.open(disk, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, PAGE) as page:
        for slot in slots:
            os.preadv(descriptor, [page], slot * PAGE)
            page[1000] ^= 4
            os.pwritev(descriptor, [page], slot * PAGE)
    os.close(descriptor)


def lost_writes() -> None:
    """dm-flakey's drop_writes: the disk says that it has written, and has not. What was there
    before does not pass for what should be there."""
    with mapped_disk() as disk, serving(disk.path) as client:
        client.write()
        disk.be("flakey {disk} 0 0 60 1 drop_writes")
        assert client.write()[0] == 0
        errors = client.look()
        assert len(errors) >= BUDGET_PAGES, len(errors)
        assert "failed their seal" in client.reasons()
        disk.be_well()
        while errors := client.look():  # those that had been in RAM come to light as they leave it
            client.write_again(errors)
        client.wait_until_well()
        client.is_whole()


def slow_disk() -> None:
    """dm-delay, two seconds a transfer: writes wait for it, nothing fails; pages in RAM are served
    to another connection meanwhile."""
    with mapped_disk() as disk, serving(disk.path) as client:
        client.write(0, BUDGET_PAGES)
        disk.be("delay {disk} 0 2000 {disk} 0 2000")
        hot = client.server.connect()
        hot.pwrite(Client.bytes_of(0), (PAGES - 1) * PAGE)
        writing = threading.Thread(target=client.write, args=(BUDGET_PAGES, 8 * RUN))
        writing.start()
        longest = 0.0
        said: set[str] = set()
        while writing.is_alive():
            begin = time.monotonic()
            hot.pread(PAGE, (BUDGET_PAGES - 1) * PAGE)
            longest = max(longest, time.monotonic() - begin)
            said.update(client.reasons().splitlines())
            time.sleep(0.1)
        assert longest < 1.5, longest
        assert any("a transfer has been under way for" in reason for reason in said), said
        status = client.server.status()
        assert status["slow_writes"] and not status["failed_puts"] and not status["writeback_errors"]
        assert "the disk is slow" in client.reasons()
        disk.be_well()
        hot.shutdown()
        client.is_whole()


def hanging_disk() -> None:
    """device-mapper's suspend: no transfer ends and none fails, for longer than the kernel would
    wait for a new server. Its own client waits, for all of it; the connection is not given up, and
    everything is there when the disk is."""
    run("modprobe", "nbd")
    run("dmesg", "--clear")  # of what scenes before this one have left
    with mapped_disk() as disk, serving(disk.path) as client:
        client.write()
        device = attach(client.server.socket, False, RESEND_SECONDS, dead_connection_seconds=30)
        read: list[bytes] = []
        reading = threading.Thread(target=lambda: read.extend(pages_of(Path(device.path), PAGES)))
        try:
            run("dmsetup", "suspend", "--nolockfs", "bad")
            try:
                reading.start()
                time.sleep(45)
                assert reading.is_alive() and "a transfer has been under way for" in client.reasons(), client.reasons()
            finally:
                run("dmsetup", "resume", "bad")
            reading.join()
        finally:
            device.detach(timeout_seconds=10)
        assert read == [client.expected(page) for page in range(PAGES)]
        said = run("dmesg")
        assert "Possible stuck request" in said, "the disk did not hang for long"
        assert not [word for word in ("Dead connection", "Connection timed out", "I/O error") if word in said], said
        client.is_whole()


def pages_of(device: Path, count: int) -> Iterator[bytes]:
    """One after the other, past the page cache."""
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, PAGE) as page:
        for number in range(count):
            os.preadv(descriptor, [page], number * PAGE)
            yield bytes(page)
    os.close(descriptor)


def death_on_a_bad_disk() -> None:
    """A server is killed while its disk refuses writes: the next one over its image serves all the
    same."""
    image = new_descriptor()
    with mapped_disk() as disk:
        word = f"image={image}"
        folder = Path("/tmp/first")
        folder.mkdir()
        first = GuestServer(folder, (*SIZES, f"backing={disk.path}", "force=yes", word), descriptors=(image,))
        wait_until(first.control.exists, "the server does not answer")
        client = Client(first)
        client.write(0, 2 * BUDGET_PAGES)
        disk.be("flakey {disk} 0 0 60 1 error_writes")
        first.process.kill()
        first.process.wait()
        with serving(disk.path, word, descriptors=(image,)) as second:
            second.model = client.model
            assert second.look() == []
            disk.be_well()
            assert second.write()[0] == 0
            second.wait_until_well()
            second.is_whole()
    os.close(image)


# -- nbdkit's filters under a block device
# ------------------------------------------------------------------------


@contextlib.contextmanager
def nbdkit_disk(*words: str) -> Iterator[Path]:
    """A block device over nbdkit's memory plugin, with filters."""
    run("modprobe", "nbd")
    socket = Path("/tmp/disk.sock")
    filters = [f"--filter={name}" for name in ("error", "delay")]
    command = ["nbdkit", "-f", "-U", str(socket), *filters, "memory", "64M", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        wait_until(socket.exists, "no disk")
        device = attach(socket, False, 0)
        try:
            yield Path(device.path)
        finally:
            device.detach(timeout_seconds=10)
            server.terminate()
    socket.unlink(missing_ok=True)


def flaky_disk() -> None:
    """nbdkit's error and delay filters: a tenth of all requests fails, and the others take their
    time. Retries hide nearly all of it; nothing is lost but what was told, and nothing at all in
    the end."""
    trigger = Path("/tmp/bad")
    rates = ("error-pread-rate=10%", "error-pwrite-rate=10%", f"error-file={trigger}", "rdelay=10ms", "wdelay=50ms")
    with nbdkit_disk(*rates) as device, serving(device) as client:
        client.write()
        trigger.touch()
        refused = client.write()[0]
        errors = client.look()
        status = client.server.status()
        assert status["writeback_errors"] and status["fetch_retries"], status
        assert refused <= PAGES // RUN // 4 and len(errors) <= PAGES // 20, (refused, len(errors))
        trigger.unlink()
        client.write_again(client.lost())
        client.is_whole()
        client.wait_until_well()


# -- files
# --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def file_system() -> Iterator[Path]:
    """ext4 of 64 MiB, or what the second disk has."""
    folder = Path("/tmp/files")
    folder.mkdir(exist_ok=True)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", SECOND_DISK)
    run("mount", SECOND_DISK, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


def free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def full_file_system() -> None:
    """Refused at the start when there is no room. When the room is taken away later (holes, and
    another file in them) writes are ENOSPC below, and go on when there is room again."""
    with file_system() as folder:
        backing = folder / "backing"
        with Path(folder / "other").open("wb") as other:
            os.posix_fallocate(other.fileno(), 0, free_bytes(folder) - (1 << 20))
        command = [sys.executable, "-P", "-m", "nbd_plugin.serve", "-U", "/tmp/refused.sock", *SIZES]
        done = subprocess.run([*command, f"backing={backing}"], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode and "no room for" in done.stderr, done.stderr
        (folder / "other").unlink()
        with serving(backing) as client:
            client.write(0, BUDGET_PAGES // 2)
            punch_holes(backing)
            with Path(folder / "other").open("wb") as other:
                os.posix_fallocate(other.fileno(), 0, free_bytes(folder) - (64 << 10))
            assert client.write(0, BUDGET_PAGES + 8 * RUN)[0] > 0
            assert client.look() == []
            assert "ENOSPC: No space left on device" in client.reasons(), client.reasons()
            (folder / "other").unlink()
            os.sync()
            wait_until(lambda: "writeback" not in client.reasons(), "not noticed", LAST_REST_SECONDS + SLACK_SECONDS)
            client.write_again(client.lost())
            client.wait_until_well()
            client.is_whole()


def punch_holes(path: Path) -> None:
    """All of it but its first page."""
    keep_size_and_punch = 3
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_long(path.stat().st_size - PAGE)
    with path.open("r+b") as file:
        if libc.fallocate(file.fileno(), keep_size_and_punch, ctypes.c_long(PAGE), size):
            raise OSError(ctypes.get_errno(), errno.errorcode[ctypes.get_errno()])


def truncated() -> None:
    """The backing file loses its second half under the server: the frames that were there are gone,
    all others are served; the file grows again as it is written."""
    with file_system() as folder, serving(folder / "backing") as client:
        client.write()
        os.truncate(folder / "backing", (PAGES - BUDGET_PAGES) // 2 * PAGE)
        errors = client.look()
        assert 0 < len(errors) < PAGES - BUDGET_PAGES // 2, len(errors)
        assert f"{len(errors)} frames below could not be read" in client.reasons(), client.reasons()
        assert client.write()[0] == 0
        client.wait_until_well()
        client.is_whole()


# -- real swap
# --------------------------------------------------------------------------------------------------


def swap_on_a_disk_that_comes_and_goes() -> None:
    """A load swaps, and for one second in four there is no disk below. Its memory is verified,
    nothing was refused and no task was killed."""
    load = ["stress-ng", "--vm", "2", "--vm-bytes", f"{memory_mib() + 50}M", "--vm-method", "rand-set", "--vm-keep"]
    with mapped_disk() as disk:
        words = ("size=180M", "budget=16M", f"backing={disk.path}", "force=yes")
        with swap_area(Options(parameters=words)):
            control = StateFolder().control
            disk.be("flakey {disk} 0 3 1")
            assert subprocess.call([*load, "--verify", "--timeout", "45s"]) == 0, "the load did not verify"
            status = ask(control, "status")
            disk.be_well()
            counted = {name: status[name] for name in (*TROUBLES, "written_back_frames", "fetched_frames")}
            print(f"  {counted}", flush=True)
            assert status["writeback_errors"] + status["fetch_retries"] > 0, "the disk was never gone"
            assert not status["failed_puts"] and not status["fetch_errors"] and not status["lost_pages"]
            assert ask(control, "check")["balanced"]


SCENES = {
    scene.__name__: scene
    for scene in (
        write_errors,
        read_errors,
        flipped_bits,
        truncated,
        full_file_system,
        flaky_disk,
        gone_one_second_in_four,
        frames_in_the_wrong_place,
        lost_writes,
        slow_disk,
        hanging_disk,
        death_on_a_bad_disk,
        swap_on_a_disk_that_comes_and_goes,
    )
}


def main(names: list[str]) -> None:
    for name in names or SCENES:
        begin = time.monotonic()
        SCENES[name]()
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
