"""What an administrator reads in a server's log when requests fail, or the server does."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import nbd
import pytest

from nbd_plugin.nbdkit_options import warnings_of
from tests.nbd.conftest import START_DEADLINE_SECONDS, RunningServer, Serve
from tests.support.failing_clients import does_not_wait_for_replies
from zcache.hardening.repeats import AGAIN

FAILING = 3157


def failing_writes(server: RunningServer, count: int) -> None:
    """To a store that is full by its own fault."""
    client = server.connect()
    failed = page = 0
    while failed < count:
        try:
            client.pwrite(os.urandom(4096), page % (client.get_size() >> 12) * 4096)
        except nbd.Error as error:
            assert error.errno == "ENOSPC"
            failed += 1
        page += 1
    client.shutdown()


def counted(lines: list[str]) -> int:
    """How often something came that was not said again."""
    times = [re.match(rf"{AGAIN}, (once|[\d,]+)", line) for line in lines if line.startswith(AGAIN)]
    assert all(times), lines
    return sum(1 if time[1] == "once" else int(time[1].replace(",", "")) for time in times if time)


def test_thousands_of_failed_writes_are_a_few_lines_that_say_why_and_how_many(serve: Serve) -> None:
    server = serve("size=16M", "budget=1M", "overcommit=yes")
    failing_writes(server, FAILING)
    server.check()
    assert server.stop() == 0
    lines = [line for line in server.log.read_text().splitlines() if "safe to swap to itself" not in line]
    assert lines[0].startswith("zcache: device: a write failed, ENOSPC: no room for 1 of 1 pages: RAM is full")
    assert "give a larger budget" in lines[0]
    assert counted(lines[1:]) == FAILING - 1 and len(lines) < 10, lines


@pytest.mark.parametrize("threads", ["1", "4"])
def test_requests_of_every_kind_that_fail_are_a_line_each(serve: Serve, tmp_path: Path, threads: str) -> None:
    """By errno, and with what to do; several connections at once, each with several threads, and
    one count of all."""
    (tmp_path / "disk").write_bytes(os.urandom(1 << 20))
    server = serve("size=16M", "budget=4M", "overcommit=yes", f"clean=data:{tmp_path}/disk", options=("-t", threads))
    os.truncate(tmp_path / "disk", 0)
    clients = []
    for _ in range(4):
        client = nbd.NBD()
        client.set_export_name("data")
        client.connect_unix(str(server.socket))
        clients.append(client)
    for turn in range(400):
        with pytest.raises(nbd.Error) as failure:
            clients[turn % 4].pread(4096, turn % 256 * 4096)
        assert failure.value.errno == "EIO"
    pending = []
    for turn in range(400):
        buffer = nbd.Buffer(4096)
        pending.append((clients[turn % 4], clients[turn % 4].aio_pread(buffer, turn % 256 * 4096)))
    for client, cookie in pending:
        with pytest.raises(nbd.Error):
            while not client.aio_command_completed(cookie):
                client.poll(1000)
    for client in clients:
        client.shutdown()
    server.check()
    assert server.stop() == 0
    lines = [line for line in server.log.read_text().splitlines() if ": a read failed" in line]
    assert lines[0].startswith("zcache: data: a read failed, EIO: ") and "look at the disk" in lines[0], lines
    assert counted(lines[1:]) == 799 and len(lines) < 8, lines


def test_a_server_that_nbdkit_aborts_has_said_so_and_was_warned_of(serve: Serve) -> None:
    """Its last words are in the log, though they were still on the way when it died."""
    server = serve("size=16M", "budget=16M", options=("-t", "8"))
    has_warned = "WARNING: -t 8: " in server.log.read_text()
    if not list(warnings_of(["-t", "8"])):
        assert not has_warned
        pytest.skip("this nbdkit does not abort")
    assert has_warned
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    number = 0
    while server.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, AssertionError):  # it is about to end
            does_not_wait_for_replies(server.socket, number)
        number += 7
    assert server.process.returncode == -signal.SIGABRT
    assert "Assertion `sock >= 0' failed" in server.log.read_text()
