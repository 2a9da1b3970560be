"""The keeper with a real server, on a machine without a device: what it holds, whom it replaces,
and when it ends.

The kernel's half (a device whose requests wait) is tested in the VM (tests/vm).
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.support.other_code import python_of
from zcache.bench.complaints import fail_writes
from zcache.control.ask import ask
from zcache.errors import SwapError
from zcache.image import image
from zcache.image.signs import DEVICE_EXPORT, JSON_BYTES, Signs
from zcache.keeper import launch as keeper_process
from zcache.keeper.state import StateFolder, SwapState
from zcache.linux import process
from zcache.swap import upgrade as upgrade_module

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = ("size=64M", "budget=16M", "overcommit=yes")
DEADLINE_SECONDS = 60
#: A netlink message to a generic family that no kernel has: it is refused, as by a kernel whose
#: device is gone.
REFUSED_MESSAGE = (20).to_bytes(4, "little") + b"\xff\x0f" + b"\x05\x00" + bytes(8) + b"\x03\x01\x00\x00"


class Keeper:
    """One keeper process over a state folder, as swap-up would leave it, but for the device."""

    def __init__(
        self, path: Path, words: tuple[str, ...] = WORDS, program: tuple[str, ...] = (), code: Path | None = None
    ) -> None:
        self.folder = StateFolder(path)
        self.folder.create()
        self._log = (path / "server.log").open("ab")
        command = keeper_process.command(self.folder, words)
        command = [sys.executable, *program, *command[command.index(str(path)) :]] if program else command
        command = [python_of(code), *command[1:]] if code else command
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=environment
        )
        identity = process.identify(self.process.pid)
        assert identity
        self.identity = identity
        self.folder.save(SwapState(identity))

    def arm(self) -> None:
        self.folder.reconnection.write_bytes(REFUSED_MESSAGE)
        self.until(self.folder.armed.exists)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def serves(self) -> bool:
        return keeper_process.is_answering(self.folder.control)

    def server_pid(self) -> int:
        return int(ask(self.folder.control, "status")["pid"])

    def signs(self) -> Signs:
        descriptor = image.of_process(self.identity.pid)
        try:
            return Signs(descriptor)
        finally:
            os.close(descriptor)

    def connect(self) -> Any:
        """A client, as soon as a server serves."""
        handle = None

        def connected() -> bool:
            nonlocal handle
            try:
                handle = nbd.NBD()
                handle.connect_unix(str(self.folder.socket))
            except nbd.Error:
                return False
            return True

        self.until(connected)
        return handle

    def log(self) -> str:
        return self.folder.log.read_text()

    def close(self, *, has_crashes: bool = False) -> None:
        self.folder.disarm_keeper()
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(60) == 0, self.log()
        self._log.close()
        crashed = re.search(r"ended with status -(?!9\b)", self.log())  # by a signal that we do not send
        assert bool(crashed) == has_crashes, self.log()


def servers_of(folder: StateFolder) -> list[str]:
    """The pids of those that run, standbys included."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended while we looked
            if f"control={folder.control}".encode() in command.read_bytes() and b"nbd_plugin" in command.read_bytes():
                found.append(command.parent.name)
    return found


def copy_of_the_code(folder: Path) -> Path:
    """For a keeper's servers, to be changed on disk."""
    code = folder / "code"
    for package in ("zcache", "nbd_plugin"):
        shutil.copytree(REPOSITORY / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    return code


def upgrade(keeper: Keeper) -> float:
    """swap-upgrade waits until the new server has a connection: the device's, which is ours
    here."""
    with ThreadPoolExecutor() as pool:
        seconds = pool.submit(upgrade_module.upgrade, keeper.folder, lambda _line: None)
        while not seconds.done():
            with contextlib.suppress(nbd.Error):
                client = nbd.NBD()
                client.set_export_name(DEVICE_EXPORT)
                client.connect_unix(str(keeper.folder.socket))
                while not seconds.done():
                    client.pread(512, 0)
                    time.sleep(0.05)
        return seconds.result()


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path / "state")
    try:
        yield keeper
    finally:
        keeper.close()


def test_a_killed_server_is_replaced_and_nothing_is_lost(keeper: Keeper) -> None:
    client = keeper.connect()
    keeper.arm()
    for round_number in range(3):
        data = bytes([round_number + 1]) + os.urandom(8191)
        client.pwrite(data, 8192 * round_number)
        pid = keeper.server_pid()
        os.kill(pid, signal.SIGKILL)
        client = keeper.connect()
        assert client.pread(8192, 8192 * round_number) == data
        keeper.until(keeper.serves)
        assert keeper.server_pid() != pid
        assert ask(keeper.folder.control, "check")["balanced"]
    assert "the standby takes its place" in keeper.log()
    assert len(servers_of(keeper.folder)) == 2


def test_a_client_that_was_quicker_does_not_keep_the_device_from_the_new_server(keeper: Keeper) -> None:
    """It waits in the listener's queue, before the keeper, and stays."""
    keeper.arm()
    refused = "the kernel did not take the new connection"
    keeper.until(lambda: keeper.log().count(refused) == 1)
    os.kill(keeper.process.pid, signal.SIGSTOP)
    os.kill(keeper.server_pid(), signal.SIGKILL)
    with socket.socket(socket.AF_UNIX) as quicker:
        quicker.connect(str(keeper.folder.socket))
        os.kill(keeper.process.pid, signal.SIGCONT)
        assert quicker.recv(8) == b"NBDMAGIC"
        keeper.until(lambda: keeper.log().count(refused) == 2)


def test_other_clients_do_not_keep_the_device_from_being_connected_again(keeper: Keeper) -> None:
    """Its connection has ended, theirs have not."""
    device = nbd.NBD()
    device.set_export_name(DEVICE_EXPORT)
    keeper.connect()  # when it serves
    device.connect_unix(str(keeper.folder.socket))
    keeper.arm()
    other = keeper.connect()
    other.pread(4096, 0)
    assert keeper.signs().connections == 1 and "did not take" not in keeper.log()
    device.shutdown()
    keeper.until(lambda: "the kernel did not take the new connection" in keeper.log())
    other.pread(4096, 0)


def test_the_device_is_given_its_own_server_whoever_has_taken_the_name(keeper: Keeper) -> None:
    """As when somebody removes the state folder with the swap on, and another swap-up makes it
    anew."""
    keeper.connect()
    keeper.arm()
    refused = "the kernel did not take the new connection"
    keeper.until(lambda: keeper.log().count(refused) == 1)
    keeper.folder.socket.rename(keeper.folder.path / "removed")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(keeper.folder.socket))
        other.listen()
        other.setblocking(False)
        os.kill(keeper.server_pid(), signal.SIGKILL)
        keeper.until(lambda: keeper.log().count(refused) == 2)  # so it has shaken hands
        with pytest.raises(BlockingIOError):
            other.accept()


def test_twenty_deaths_in_a_row(keeper: Keeper) -> None:
    """Each server dies as soon as it has answered: its heir is there before it needs memory, or
    time, to start."""
    client = keeper.connect()
    keeper.arm()
    data = os.urandom(4096)
    client.pwrite(data, 0)
    for _ in range(20):
        os.kill(keeper.signs().pid, signal.SIGKILL)
        client = keeper.connect()
        assert client.pread(4096, 0) == data
    client.shutdown()
    keeper.until(keeper.serves)
    assert keeper.signs().epoch == 21
    assert ask(keeper.folder.control, "check")["balanced"]
    assert "standby ended" not in keeper.log()


def test_the_image_is_locked_in_memory_by_the_keeper_alone_while_there_is_no_server(keeper: Keeper) -> None:
    """What is shared is swappable: to the very device whose pages it holds."""
    client = keeper.connect()
    keeper.arm()
    client.pwrite(os.urandom(8 << 20), 0)
    os.kill(keeper.process.pid, signal.SIGSTOP)  # no new server now
    client.pread(4096, 0)
    os.kill(keeper.process.pid, signal.SIGCONT)

    def locked_image_kib() -> int:
        lines = Path(f"/proc/{keeper.process.pid}/smaps").read_text().split(image.NAME)[1:]
        sizes = [int(line.split()[1]) for part in lines for line in part.splitlines() if line.startswith("Rss:")]
        flags = [line for part in lines for line in part.splitlines() if line.startswith("VmFlags:")]
        assert all(" lo" in line for line in flags[: len(lines)])
        return sizes[0]

    keeper.until(lambda: locked_image_kib() > 16 << 10)


@pytest.mark.parametrize(
    ("word", "reason"),
    [("size=nonsense", "not a number of bytes"), ("backing=/nowhere/at/all", "its folder does not exist")],
)
def test_a_first_server_that_refuses_ends_the_keeper_with_its_words(tmp_path: Path, word: str, reason: str) -> None:
    """Before it can have an heir, and after: that ends, too."""
    words = [other for other in WORDS if other.partition("=")[0] != word.partition("=")[0]]
    keeper = Keeper(tmp_path / "state", (word, *words))
    assert keeper.process.wait(DEADLINE_SECONDS) == 1
    keeper.close()
    assert f"{word}: " in keeper.log() and reason in keeper.log()
    assert not servers_of(keeper.folder)


def test_a_server_that_dies_with_much_to_say_is_replaced(tmp_path: Path) -> None:
    """Its pipe for messages is full then, and nobody empties it any more."""
    keeper = Keeper(tmp_path / "state", ("size=16M", "budget=1M", "overcommit=yes"))
    keeper.connect().shutdown()
    keeper.arm()
    for _ in range(4):
        pid = keeper.signs().pid
        with ThreadPoolExecutor() as pool:
            failing = pool.submit(fail_writes, keeper.folder.socket, 100_000)
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)
            assert failing.exception() or failing.result() > 100
        keeper.connect().shutdown()
        assert keeper.signs().pid != pid
    assert keeper.signs().epoch == 5
    keeper.close()


def test_waiting_for_a_standby_costs_nothing(keeper: Keeper) -> None:
    """Server and standby die together: what the keeper has of the processor is what their successor
    needs."""
    keeper.connect().shutdown()
    keeper.arm()
    before = cpu_seconds(keeper.process.pid)
    server = keeper.server_pid()
    for pid in sorted(servers_of(keeper.folder), key=lambda pid: int(pid) == server):
        os.kill(int(pid), signal.SIGKILL)
    keeper.until(lambda: keeper.signs().pid != server)
    assert cpu_seconds(keeper.process.pid) - before < 0.3


def test_a_backing_file_that_was_cut_off_keeps_no_successor_from_serving(tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    keeper = Keeper(tmp_path / "state", ("size=64M", "budget=16M", f"backing={backing}"))
    client = keeper.connect()
    keeper.arm()
    client.pwrite(b"precious" * 512, 4096)
    os.truncate(backing, 20 << 20)
    os.kill(keeper.signs().pid, signal.SIGKILL)
    assert keeper.connect().pread(4096, 4096) == b"precious" * 512
    keeper.close()


def test_what_is_under_the_name_of_the_backing_file_by_now_is_somebody_else_s(tmp_path: Path) -> None:
    """Successors, new code and all, go on with the file that the first server opened, and keep its
    lock."""
    backing = tmp_path / "backing"
    keeper = Keeper(tmp_path / "state", ("size=32M", "budget=2M", f"backing={backing}"))
    client = keeper.connect()
    keeper.arm()
    pages = {number: os.urandom(3000).ljust(4096, b"\0") for number in range(1000)}
    for number, page in pages.items():
        client.pwrite(page, number * 4096)
    backing.rename(tmp_path / "moved")
    backing.write_bytes(b"somebody else's" * 1_000_000)
    mine = backing.read_bytes()
    for is_upgrade in False, True:
        if is_upgrade:
            upgrade(keeper)
        else:
            os.kill(keeper.signs().pid, signal.SIGKILL)
        client = keeper.connect()
        for number, page in pages.items():
            assert client.pread(4096, number * 4096) == page
        for number in range(1000, 2000):
            client.pwrite(os.urandom(4096), number * 4096)
        client.shutdown()
    status = ask(keeper.folder.control, "status")
    assert status["written_back_frames"] > 0 and not status["reasons"]
    assert ask(keeper.folder.control, "check")["balanced"]
    moved = os.open(tmp_path / "moved", os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(moved, fcntl.LOCK_EX | fcntl.LOCK_NB)
    keeper.close()
    fcntl.flock(moved, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(moved)
    assert backing.read_bytes() == mine


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_whatever_ends_a_program_ends_the_keeper_with_its_server(keeper: Keeper, number: signal.Signals) -> None:
    """And not without it; nor while the kernel swaps to the device, which is for the VM to see."""
    keeper.connect().shutdown()
    keeper.arm()
    keeper.folder.disarm_keeper()
    keeper.process.send_signal(number)
    assert keeper.process.wait(60) == 0
    assert servers_of(keeper.folder) == []


def test_new_code_that_does_not_last_gives_way_to_the_old(tmp_path: Path) -> None:
    """It starts, looks at the image, says that it is ready, and dies as it begins. So do its
    heirs."""
    code = copy_of_the_code(tmp_path)
    keeper = Keeper(tmp_path / "state", code=code)
    client = keeper.connect()
    keeper.arm()
    client.pwrite(b"precious" * 512, 4096)
    server = code / "zcache/server/server.py"
    good = server.read_text()
    server.write_text(good.replace("self.store, self.pages = self._make_store()", "os.abort()"))
    assert server.read_text() != good
    with pytest.raises(SwapError, match="the old code goes on"):
        upgrade(keeper)
    assert keeper.connect().pread(4096, 4096) == b"precious" * 512
    keeper.until(lambda: len(servers_of(keeper.folder)) == 2)
    server.write_text(good)
    upgrade(keeper)
    assert keeper.connect().pread(4096, 4096) == b"precious" * 512
    assert "going back to the code from before the upgrade" in keeper.log()
    keeper.close(has_crashes=True)


def test_what_is_wrong_with_new_code_is_told(tmp_path: Path) -> None:
    """Whatever it is, and however late: when it has its own standard error, which goes with it."""
    code = copy_of_the_code(tmp_path)
    keeper = Keeper(tmp_path / "state", code=code)
    keeper.connect().shutdown()
    keeper.arm()
    server = code / "zcache/server/server.py"
    good = server.read_text()
    server.write_text(good.replace("self.store, self.pages = self._make_store()", "raise ValueError('not that way')"))
    assert server.read_text() != good
    with pytest.raises(SwapError, match="the old code goes on"):
        upgrade(keeper)
    assert "ValueError: not that way" in keeper.log()
    keeper.close()


def test_new_code_whose_heir_dies_first_is_not_given_up(tmp_path: Path) -> None:
    """It is slow to begin, but it does; what has died is not the server."""
    code = copy_of_the_code(tmp_path)
    keeper = Keeper(tmp_path / "state", code=code)
    keeper.connect().shutdown()
    keeper.arm()
    server, standby = code / "zcache/server/server.py", code / "zcache/server/standby.py"
    good = server.read_text()
    slow = "__import__('time').sleep(2); self.store, self.pages = self._make_store()"
    server.write_text(good.replace("self.store, self.pages = self._make_store()", slow))
    assert server.read_text() != good
    good = standby.read_text()
    dies = "        __import__('time').sleep(0.7)\n        os._exit(3)\n"
    standby.write_text(good.replace("        keeper = heirs\n", dies))
    assert standby.read_text() != good
    upgrade(keeper)
    assert keeper.signs().epoch == keeper.signs().upgraded == 2
    keeper.close()
    assert "the standby ended" in keeper.log() and "going back" not in keeper.log()


def test_a_server_that_hangs_is_ended_and_replaced(tmp_path: Path) -> None:
    """One that gives no sign of life for as long as it takes: a second here, and not a minute."""
    impatient = (
        "import sys; from zcache.keeper import __main__, keeper; "
        "keeper.HEARTBEAT_SECONDS = 1.0; __main__.main(sys.argv[1:])"
    )
    keeper = Keeper(tmp_path / "state", program=("-c", impatient))
    client = keeper.connect()
    keeper.arm()
    client.pwrite(b"precious" * 512, 4096)
    pid = keeper.server_pid()
    time.sleep(2.5)
    assert keeper.server_pid() == pid, "one that is idle lives"
    os.kill(pid, signal.SIGSTOP)
    keeper.until(lambda: keeper.signs().pid != pid)
    assert keeper.connect().pread(4096, 4096) == b"precious" * 512
    keeper.close()
    assert "no sign of life from the server for 1 s: ending it" in keeper.log()


def test_upgrade_replaces_the_server(keeper: Keeper) -> None:
    client = keeper.connect()
    keeper.arm()
    client.pwrite(b"precious" * 512, 4096)
    pid = keeper.server_pid()
    client.shutdown()
    seconds = upgrade(keeper)
    assert 0 < seconds < DEADLINE_SECONDS
    keeper.until(keeper.serves)
    assert keeper.server_pid() != pid
    client = keeper.connect()
    assert client.pread(4096, 4096) == b"precious" * 512
    client.shutdown()


def test_upgrade_to_code_that_cannot_read_the_image_changes_nothing(keeper: Keeper) -> None:
    """Here the image becomes one of another version's, which is the same to the code that looks at
    it."""
    keeper.connect().shutdown()
    keeper.arm()
    keeper.until(keeper.serves)
    pid = keeper.server_pid()
    descriptor = image.of_process(keeper.identity.pid)
    header = os.pread(descriptor, JSON_BYTES, 0)
    for old, new, reason in (
        (
            b'image format": %d' % image.FORMAT,
            b'image format": 999',
            f"format 999, this version reads format {image.FORMAT}",
        ),
        (b'page_count": 16384', b'page_count": 99999', "made with page_count 99999, not 16384"),
    ):
        os.pwrite(descriptor, header.replace(old, new), 0)
        with pytest.raises(SwapError, match=rf"(?s)old code goes on.*{reason}"):
            upgrade(keeper)
        os.pwrite(descriptor, header, 0)
        assert keeper.server_pid() == pid
    os.close(descriptor)
    assert len(servers_of(keeper.folder)) == 2, "the standby is still there"
    assert "ending the server" not in keeper.log()
    os.kill(pid, signal.SIGKILL)
    keeper.connect().shutdown()
    assert upgrade(keeper) > 0


def test_an_upgrade_outlives_the_death_of_the_server(tmp_path: Path) -> None:
    """It dies while the new code starts: its standby takes its place, and then the new code takes
    that one's."""
    code, go = copy_of_the_code(tmp_path), tmp_path / "go"
    keeper = Keeper(tmp_path / "state", code=code)
    client = keeper.connect()
    keeper.arm()
    client.pwrite(b"precious" * 512, 4096)
    server = code / "zcache/server/server.py"
    good = server.read_text()
    wait = f"os.umask(0o177)\n        while not os.path.exists({str(go)!r}): __import__('time').sleep(0.05)"
    server.write_text(good.replace("os.umask(0o177)", wait))
    assert server.read_text() != good
    with ThreadPoolExecutor() as pool:
        seconds = pool.submit(upgrade, keeper)
        keeper.until(lambda: "starting the code" in keeper.log())
        os.kill(keeper.signs().pid, signal.SIGKILL)
        keeper.until(lambda: keeper.signs().epoch == 2 and keeper.signs().serves)
        go.touch()
        assert seconds.result() > 0
    assert keeper.connect().pread(4096, 4096) == b"precious" * 512
    assert keeper.signs().epoch == keeper.signs().upgraded == 3
    keeper.until(lambda: len(servers_of(keeper.folder)) == 2)
    keeper.close()


def test_what_a_killed_keeper_leaves_ends_with_the_server(tmp_path: Path) -> None:
    """The server goes on: somebody may swap to it. The standby is of no use any more, and ends."""
    keeper = Keeper(tmp_path / "state")
    keeper.arm()
    assert len(servers_of(keeper.folder)) == 2
    assert ask(keeper.folder.control, "status")["state"] == "ok"
    keeper.process.kill()
    keeper.process.wait()
    status = ask(keeper.folder.control, "status")
    assert status["state"] == "degraded" and "the keeper is gone" in status["reasons"][0], status
    with pytest.raises(SwapError, match=r"the keeper .* is gone"):
        upgrade_module.upgrade(keeper.folder, lambda _line: None)
    pid = keeper.server_pid()
    keeper.until(lambda: servers_of(keeper.folder) == [str(pid)])
    children = Path(f"/proc/{pid}/task/{pid}/children")
    keeper.until(lambda: not children.read_text())  # not even a zombie
    assert keeper.serves()
    os.kill(pid, signal.SIGKILL)
    keeper.until(lambda: not servers_of(keeper.folder))
    keeper.close()


def test_without_a_keeper_there_is_nothing_to_upgrade(tmp_path: Path) -> None:
    with pytest.raises(SwapError, match="no swap is up"):
        upgrade_module.upgrade(StateFolder(tmp_path), lambda _line: None)


def test_a_clean_export_outlives_its_server_and_its_name(tmp_path: Path) -> None:
    """Each server goes on with the file that the first one opened; what was in RAM of it is gone,
    and nothing else."""
    image_file = tmp_path / "image"
    content = b"".join(number.to_bytes(4, "little") * 1024 for number in range(256))
    image_file.write_bytes(content)
    keeper = Keeper(tmp_path / "state", (*WORDS, f"clean=image:{image_file}", "admit=always"))
    keeper.arm()

    def connect() -> Any:
        client = nbd.NBD()
        client.set_export_name("image")
        client.connect_unix(str(keeper.folder.socket))
        return client

    client = connect()
    assert client.pread(len(content), 0) == content
    client.pwrite(b"written" + bytes(4089), 40960)
    image_file.rename(tmp_path / "moved")
    image_file.write_bytes(b"somebody else's" * 100_000)
    for _ in range(2):
        server = keeper.server_pid()
        os.kill(server, signal.SIGKILL)
        keeper.until(lambda server=server: keeper.serves() and keeper.server_pid() != server)  # type: ignore[misc]
        client = connect()
        assert client.get_size() == len(content)
        assert client.pread(len(content), 0) == content[:40960] + b"written" + bytes(4089) + content[45056:]
        keeper.until(keeper.folder.armed.exists)
    status = ask(keeper.folder.control, "status")
    assert status["clean_exports"][0]["misses"] == 256 and status["ephemeral_pages"] > 0
    client.pwrite(b"again", 0)
    assert (tmp_path / "moved").read_bytes()[:5] == b"again"
    assert image_file.read_bytes()[:5] == b"someb"
    client.shutdown()
    keeper.close()
