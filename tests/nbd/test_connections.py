"""Several connections at once: parallel requests to the same pages, and partial writes that must
not undo each other."""

import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbd

from tests.nbd.conftest import REPOSITORY, START_DEADLINE_SECONDS, RunningServer, Serve
from zcache.bench.complaints import FAILING_WRITES, complain
from zcache.control.ask import ask
from zcache.hardening.threads import STACK_BYTES
from zcache.keeper import launch as keeper_process

PAGES = 200

#: One after the other.
CONNECTIONS = 2500
#: What a thread's Python state takes at least, beside what hangs on it (`PyThreadState` of CPython
#: 3.11).
STATE_BYTES = 360


def in_parallel(server: RunningServer, *workers: Callable[[Any], None]) -> None:
    """Run each worker in a thread with a connection of its own; the first failure is raised."""
    failures: list[BaseException] = []

    def run(worker: Callable[[Any], None]) -> None:
        client = server.connect()
        try:
            worker(client)
        except BaseException as error:
            failures.append(error)
        finally:
            client.shutdown()

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_two_connections_to_the_same_pages(serve: Serve, seed: int, tmp_path: Path) -> None:
    """Each page always holds what one of the writers wrote, whole; never a mixture, never zeros,
    never an error."""
    server = serve("size=1M", "budget=256K", f"backing={tmp_path}/b")

    def page_of(writer: int, number: int, rng: random.Random) -> bytes:
        head = f"{writer}:{number}:".encode()
        body = rng.randbytes(rng.choice([0, 100, 1500, 4000]))
        return (head + body).ljust(4096 - len(head), b"\0") + head

    def writer(which: int) -> Callable[[Any], None]:
        def work(client: Any) -> None:
            rng = random.Random(seed + which)
            for number in range(1500):
                count = rng.choice([1, 1, 2, 8, 32])
                first = rng.randrange(PAGES - count + 1)
                pages = b"".join(page_of(which, number, rng) for _ in range(count))
                client.pwrite(pages, first * 4096)

        return work

    def reader(client: Any) -> None:
        rng = random.Random(seed + 100)
        for _ in range(3000):
            page = client.pread(4096, rng.randrange(PAGES) * 4096)
            head = page.split(b":")
            mark = b":".join(head[:2]) + b":"
            assert len(head) > 2 and page.startswith(mark) and page.endswith(mark)

    client = server.connect()
    rng = random.Random(seed)
    client.pwrite(b"".join(page_of(9, 0, rng) for _ in range(PAGES)), 0)
    client.shutdown()
    in_parallel(server, writer(1), writer(2), reader, reader)
    assert server.status()["written_back_frames"] > 0


def test_partial_writes_to_one_page_do_not_undo_each_other(serve: Serve) -> None:
    """Two connections each own every other 512-byte sector of the same pages."""
    server = serve("size=1M", "budget=256K", "overcommit=yes")

    def owner(parity: int) -> Callable[[Any], None]:
        def work(client: Any) -> None:
            for number in range(200):
                for sector in range(parity, 16, 2):
                    mark = bytes([parity + 1, number % 256]) * 256
                    client.pwrite(mark, sector * 512)
                for sector in range(parity, 16, 2):
                    mark = bytes([parity + 1, number % 256]) * 256
                    assert client.pread(512, sector * 512) == mark

        return work

    in_parallel(server, owner(0), owner(1))


def test_a_partial_write_does_not_undo_a_whole_one(serve: Serve) -> None:
    """One connection writes a page whole, with two more; another writes a sector of the first. What
    the whole write put beside that sector is there when it has been answered."""
    server = serve("size=1M", "budget=256K", "overcommit=yes")

    def sectors(client: Any) -> None:
        for number in range(600):
            client.pwrite(bytes([number % 256]) * 512, 4096)

    def whole(client: Any) -> None:
        for number in range(600):
            mark = bytes([number % 251, number // 251]) * 2048
            client.pwrite(mark * 3, 4096)
            assert client.pread(3584, 4096 + 512) == mark[512:]

    in_parallel(server, sectors, whole)


def test_a_full_stderr_stops_no_request(tmp_path: Path) -> None:
    """Without the protection it does: `scripts/bench ablation stderr`."""
    assert complain(tmp_path, "all") == f"answered {FAILING_WRITES} failing requests"


def test_a_server_whose_messages_go_to_a_socket_ends_when_it_is_told(tmp_path: Path) -> None:
    """As they do to systemd's journal. It is no connection of a client's."""
    ours, theirs = socket.socketpair()
    words = [str(REPOSITORY / "scripts/serve"), "-U", str(tmp_path / "s"), "size=1M", "budget=1M"]
    words.append(f"control={tmp_path}/c")
    descriptor = theirs.fileno()
    with (
        ours,
        theirs,
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor) as server,
    ):
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while not keeper_process.is_answering(tmp_path / "c"):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        client = nbd.NBD()
        client.connect_unix(str(tmp_path / "s"))
        client.pwrite(bytes(range(256)) * 16, 0)
        server.terminate()
        try:
            assert server.wait(20) == 0
        finally:
            server.kill()


def test_threads_that_have_ended_leave_nothing(serve: Serve) -> None:
    """nbdkit starts a thread, or several, for each connection. Newer CPythons aborted when the
    state of one that had ended was destroyed by another."""
    for threads in ("1", "4"):
        server = serve("size=16M", "budget=16M", "allocator=zbud", options=("-t", threads))

        def use(count: int, server: RunningServer = server) -> None:
            for number in range(count):
                client = server.connect()
                page = bytes([number % 251]) * 4096
                client.pwrite(page, number % PAGES * 4096)
                assert client.pread(4096, number % PAGES * 4096) == page
                client.shutdown()

        use(2 * PAGES)
        before = ask(server.control, "objects")
        use(CONNECTIONS)
        after = ask(server.control, "objects")
        grown_bytes = after["malloc_bytes"] - before["malloc_bytes"]
        assert grown_bytes < CONNECTIONS * STATE_BYTES // 4, (threads, before, after)  # malloc's own chips are some
        assert server.status()["kept_threads"] <= 1 + int(threads)


def test_what_large_requests_took_is_given_back(serve: Serve) -> None:
    """nbdkit keeps a buffer as large as the largest request for each connection; it is locked. In
    the heap, a small block behind them kept them all (Debian 13, six times of eight)."""
    server = serve("size=64M", "budget=80M")
    before_bytes = server.status()["rss_bytes"]
    clients = [server.connect() for _ in range(10)]
    for client in clients:
        client.set_strict_mode(0)  # or it would keep to what it is told is the most
        client.pread(16 << 20, 0)
    assert server.status()["rss_bytes"] > before_bytes + (100 << 20)
    for client in clients:
        client.shutdown()
    deadline = time.monotonic() + 30
    stacks_bytes = len(clients) * STACK_BYTES  # glibc keeps them for threads to come
    while server.status()["rss_bytes"] > before_bytes + stacks_bytes + (2 << 20):
        assert time.monotonic() < deadline, server.status()["rss_bytes"] - before_bytes
        time.sleep(0.2)
