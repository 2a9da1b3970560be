"""What a server can still do once it serves, asked of the kernel for each of its threads; and who
can reach it."""

import os
import random
import resource
import subprocess
import threading
from pathlib import Path

import pytest

from tests.nbd.conftest import RunningServer, Serve
from tests.support.control_clients import RudeClients
from tests.support.pages import any_page
from zcache.linux.libc import CAP_IPC_LOCK

MIB = 1 << 20

RUDE_CLIENTS = 10_000


def threads_of(server: RunningServer) -> list[dict[str, str]]:
    """/proc/PID/task/TID/status of each."""
    tasks = Path(f"/proc/{server.process.pid}/task")
    return [
        dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines()) for task in tasks.iterdir()
    ]


def allowed_capabilities() -> int:
    """None; but locking memory takes one where a limit stands against it that cannot be lifted."""
    own = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    can_lift = int(own["CapEff"], 16) >> 24 & 1  # CAP_SYS_RESOURCE
    is_limited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != resource.RLIM_INFINITY
    return 1 << CAP_IPC_LOCK if is_limited and not can_lift else 0


def check_threads(server: RunningServer) -> int:
    threads = threads_of(server)
    for thread in threads:
        for name in ("CapPrm", "CapEff"):
            assert int(thread[name], 16) & ~allowed_capabilities() == 0, thread
        for name in ("CapInh", "CapAmb"):
            assert int(thread[name], 16) == 0, thread
        assert os.geteuid() or int(thread["CapBnd"], 16) == 0, thread
        assert thread["NoNewPrivs"] == "1"
    return len(threads)


def locked_bytes(server: RunningServer) -> int:
    for line in Path(f"/proc/{server.process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Locked:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no Locked")


def test_no_thread_keeps_a_privilege_and_memory_is_locked_all_the_same(serve: Serve, rng: random.Random) -> None:
    """Threads of the start, those of connections that come later, and tables that are populated as
    they are used."""
    server = serve("size=256G", "budget=16M", "overcommit=yes")
    status = server.status()
    assert status["hardening"]["least_privilege"]
    few = check_threads(server)
    clients = [server.connect() for _ in range(4)]
    locked_before = locked_bytes(server)
    for number in range(2000):
        clients[number % 4].pwrite(any_page(rng), number * 100 * MIB)  # a page of the page table each
    assert check_threads(server) > few
    if status["hardening"]["memory_lock"]:
        assert locked_bytes(server) > locked_before + 2000 * 4096 * 9 // 10
    for client in clients:
        client.shutdown()


def test_a_server_without_privileges_ends_cleanly(serve: Serve) -> None:
    """It removes its control socket, and has said what failed."""
    server = serve("size=4M", "budget=1M", "overcommit=yes")
    client = server.connect()
    with pytest.raises(Exception, match="pwrite"):
        for page in range(1024):
            client.pwrite(os.urandom(4096), page * 4096)
    client.shutdown()
    server.check()
    assert server.stop() == 0
    assert not server.control.exists()
    log = server.log.read_text()
    assert "privileges given up" in log and "out of reach" not in log
    assert "device: a write failed, ENOSPC" in log and "libgcc" not in log


@pytest.mark.parametrize("mask", [0, 0o77])
def test_both_sockets_are_for_their_owner_from_the_moment_they_are_made(tmp_path: Path, mask: int) -> None:
    """Whatever the mask of who starts it; looked at by a program that nbdkit runs once it has bound
    its socket."""
    serve = Path(__file__).resolve().parents[2] / "scripts/serve"
    look = f"stat -c %a {tmp_path}/nbd {tmp_path}/control"
    words = ["size=4M", "budget=4M", f"control={tmp_path}/control"]
    command = [str(serve), "-U", f"{tmp_path}/nbd", "--run", look, *words]
    done = subprocess.run(command, capture_output=True, text=True, umask=mask, check=False)
    assert done.stdout.split() == ["600", "600"], done.stderr


@pytest.mark.thorough
def test_rude_clients_of_the_control_socket_while_pages_come_and_go(serve: Serve, rng: random.Random) -> None:
    server = serve("size=16M", "budget=16M")
    client = server.connect()
    stop = threading.Event()
    failures: list[BaseException] = []

    def pages() -> None:
        own = random.Random(rng.random())
        known: dict[int, bytes] = {}
        try:
            while not stop.is_set():
                index = own.randrange(4096)
                if index in known:
                    assert client.pread(4096, index * 4096) == known[index]
                known[index] = any_page(own)
                client.pwrite(known[index], index * 4096)
        except BaseException as error:
            failures.append(error)

    worker = threading.Thread(target=pages)
    worker.start()
    clients = RudeClients(server.control, rng)
    clients.throw(500)
    descriptors = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
    threads = len(threads_of(server))
    clients.throw(RUDE_CLIENTS)
    clients.close()
    stop.set()
    worker.join()
    assert not failures
    assert server.status()["puts"] > 100
    assert len(threads_of(server)) == threads
    assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) <= descriptors
    client.shutdown()
