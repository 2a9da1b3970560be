"""The control socket: whatever a client does, the next one is answered."""

import contextlib
import errno
import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.stores import new_object, put, settings_of, small_store
from zcache.client import command as cli
from zcache.control import listener as control_module
from zcache.control.ask import ask
from zcache.control.listener import MAX_CONNECTIONS, ControlSocket
from zcache.control.status import gather_status
from zcache.errors import BadInput, EnvironmentProblem
from zcache.store.store import Store


@pytest.fixture
def store() -> Store:
    return small_store(budget_frames=16, below_frames=16)


@pytest.fixture
def control(store: Store, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "control"
    listening = ControlSocket(path)
    pages = new_object(store, 16)
    put(store, pages, 0, bytes(4096), b"x" * 2048 + bytes(2048))
    listening.start(store, lambda: gather_status(store, pages, {}), settings_of(store))
    yield path
    listening.close()
    assert not path.exists()


def say(path: Path, request: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(request)
        return json.loads(b"".join(iter(lambda: client.recv(65536), b"")))


#: What scripts may rely on; more may be there.
PROMISED = (
    "stored_pages same_filled_pages raw_pages compressed_bytes resident_frames budget_frames clean_frames "
    "written_back_frames backing_frames puts gets flushes failed_puts reject_compress_poor reject_mean_poor "
    "reject_no_frame reclaim_sync reclaim_background checksum_errors read_bytes write_bytes"
)


def test_status_has_every_counter(control: Path) -> None:
    status = ask(control, "status")
    assert set(PROMISED.split()) <= set(status)
    assert status["stored_pages"] == 2 and status["same_filled_pages"] == 1 and status["puts"] == 2


def test_check_says_whether_the_books_balance(control: Path, store: Store) -> None:
    assert ask(control, "check")["balanced"] is True
    store.statistics.stored_pages += 1
    answer = ask(control, "check")
    assert answer["balanced"] is False and "stored_pages" in answer["imbalance"]


def test_check_says_what_balanced_books_do_not(
    control: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.statistics.decode_errors += 1
    monkeypatch.setattr(sys, "argv", ["zcache", "check", "--control", str(control)])
    assert cli.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("balanced: 2 pages") and len(said) == 2 and "had changed in RAM" in said[1]


def test_an_answer_that_cannot_be_printed(control: Path) -> None:
    """It is there, but a table, or JSON, has nowhere to go: one line and 2; see
    `test_standard_streams`."""
    command = [sys.executable, "-m", "zcache.client.command", "status", "--control", str(control)]
    for words in ([], ["--json"]):
        for place, reason in ((">&-", "it is closed"), (">/dev/full", "No space left on device")):
            shell = ["sh", "-c", f'exec "$@" {place}', "sh", *command, *words]
            done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
            assert (done.returncode, done.stderr) == (2, f"zcache: cannot write to standard output: {reason}\n")


def test_only_the_owner_may_connect(control: Path) -> None:
    assert control.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("request_bytes", [b"\n", b"nonsense\n", b"\xff\xfe\n", b"status status\n", b"x" * 100_000])
def test_what_is_not_a_command_is_answered_and_harms_nothing(control: Path, request_bytes: bytes) -> None:
    try:
        assert "unknown command" in say(control, request_bytes)["error"]
    except OSError:
        assert len(request_bytes) > 256  # the connection may end before all of it was taken
    assert ask(control, "status")["puts"] == 2


def test_a_client_that_goes_away_harms_nothing(control: Path) -> None:
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(control))
    assert ask(control, "status")["puts"] == 2


def test_a_busy_server_is_waited_for(tmp_path: Path) -> None:
    """Its queue of connections is full, which a connect that does not block takes for an error."""
    path = tmp_path / "control"

    def answer() -> None:
        request = b""
        while not request:
            connection, _ = listener.accept()
            with connection:
                request = connection.recv(100)
                if request:
                    connection.sendall(b'{"puts": 3}\n')

    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as clients:
        listener.bind(str(path))
        listener.listen(0)
        with pytest.raises(BlockingIOError):
            while True:
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(BadInput, match="another server answers"):
            ControlSocket(path)
        clients.close()
        later = threading.Timer(0.2, answer)
        later.start()
        assert ask(path, "status") == {"puts": 3}
        later.join()


def test_a_command_that_fails_is_answered_and_the_next_one_works(
    control: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store.statistics.__class__, "as_dict", lambda _self: 1 // 0)
        with pytest.raises(EnvironmentProblem, match="could not answer 'status': ZeroDivisionError"):
            ask(control, "status")
    assert ask(control, "status")["puts"] == 2


def test_a_dead_socket_is_replaced_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    alive = ControlSocket(path)
    with pytest.raises(BadInput, match="another server answers"):
        ControlSocket(path)
    alive.close()
    with pytest.raises(EnvironmentProblem, match="no server answers"):
        ask(path, "status")


def held_connections(path: Path, count: int, said: bytes) -> list[socket.socket]:
    clients = []
    for _ in range(count):
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].connect(str(path))
        clients[-1].sendall(said)
    return clients


@pytest.mark.parametrize("said", [b"", b"stat"])
def test_clients_that_never_ask_hold_up_nobody(control: Path, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """More of them than are kept, and with all the time in the world: only the others' independence
    can help."""
    monkeypatch.setattr("zcache.control.listener.DEADLINE_SECONDS", 1e6)
    clients = held_connections(control, 3 * MAX_CONNECTIONS, said)
    for _ in range(3):
        assert ask(control, "status")["puts"] == 2
    kept = [client for client in clients if is_open(client)]
    assert len(kept) < MAX_CONNECTIONS and kept == clients[-len(kept) :]
    for client in clients:
        client.close()


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True


def test_a_client_that_never_reads_holds_up_nobody(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer does not fit into the socket."""
    monkeypatch.setattr("zcache.control.listener.DEADLINE_SECONDS", 1e6)
    path = tmp_path / "large"
    listening = ControlSocket(path)
    listening.start(store, lambda: {"large": "x" * 10_000_000}, settings_of(store))
    (client,) = held_connections(path, 1, b"status\n")
    assert len(ask(path, "status")["large"]) == 10_000_000
    assert ask(path, "check")["balanced"]
    assert client.recv(10) == b'{"large": '
    client.close()
    listening.close()


def test_the_deadline_is_for_all_that_a_client_says(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not put it off."""
    monkeypatch.setattr("zcache.control.listener.DEADLINE_SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(control))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(200):  # too few bytes to be taken for a request
                client.sendall(b"s")
                time.sleep(0.02)
    assert ask(control, "status")["puts"] == 2


def test_a_client_that_does_not_read_is_given_up(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcache.control.listener.DEADLINE_SECONDS", 0.1)
    path = tmp_path / "large"
    listening = ControlSocket(path)
    listening.start(store, lambda: {"large": "x" * 10_000_000}, settings_of(store))
    (client,) = held_connections(path, 1, b"status\n")
    poll = select.poll()
    poll.register(client, 0)  # only for the other end's going
    assert poll.poll(10_000)
    assert len(b"".join(iter(lambda: client.recv(65536), b""))) < 10_000_000
    client.close()
    listening.close()


def test_an_answer_that_is_none(tmp_path: Path) -> None:
    """Something else may be listening there."""
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(4)
        for answer in (b"", b"5", b"[]", b"{", b"\xff"):

            def speak(answer: bytes = answer) -> None:
                with listener.accept()[0] as connection:
                    connection.recv(100)
                    connection.sendall(answer)

            speaker = threading.Thread(target=speak)
            speaker.start()
            with pytest.raises(EnvironmentProblem, match="no server answers"):
                ask(path, "status")
            speaker.join()


def test_another_users_socket_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_path: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(control_module, "remove_if_dead", denied)
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(tmp_path / "control"))
        with pytest.raises(BadInput, match="another user's"):
            ControlSocket(tmp_path / "control")
    assert (tmp_path / "control").exists()


def test_a_socket_of_another_type_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "control"))
        with pytest.raises(BadInput, match="wrong type for socket; give another path"):
            ControlSocket(tmp_path / "control")
    assert (tmp_path / "control").is_socket()


def test_a_folder_that_one_may_not_enter_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may enter any: so it is played."""

    def refuse(_socket: socket.socket, _path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def refuse_to_look(_path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", type("Refused", (socket.socket,), {"connect": refuse}))
    monkeypatch.setattr(Path, "exists", refuse_to_look)
    monkeypatch.setattr(sys, "argv", ["zcache", "status"])
    assert cli.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "run this as root" in said
