"""The control socket: one line in (`status`, `check`, `objects` or `set KEY=VALUE`), one line of
JSON out, and the connection ends.

A thread of its own serves all connections at once and waits for none of them: each has deadlines,
and a limit on what it may send; when there are too many, the oldest gives way. Nothing that a
client does here can hold up a page, or another client, but by asking for a `check`, which is
answered before another client is. The store's lock is taken only for a snapshot.
"""

import json
import math
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from zcache.control.ask import REQUEST_BYTES
from zcache.control.check import check
from zcache.control.settings import Settings
from zcache.control.status import gather_objects
from zcache.errors import BadInput, Imbalance
from zcache.hardening.own_thread import OwnThread
from zcache.linux.sockets import listen_for_owner, remove_if_dead
from zcache.store.store import Store

#: To have asked, from being accepted on; and then once more to have read the answer. Ours take
#: milliseconds.
DEADLINE_SECONDS: Final = 5.0
#: At a time, and as many in the queue.
MAX_CONNECTIONS: Final = 16
#: Between two attempts to accept when there are no descriptors.
REST_SECONDS: Final = 0.1


#: The one command that something follows.
SET: Final = "set"

#: What follows is given to the command.
Commands = dict[str, Callable[[str], dict[str, Any]]]


class _Connection:
    """One client: what it has said so far, then what it is still to be told."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.setblocking(False)
        self.deadline_seconds = time.monotonic() + DEADLINE_SECONDS
        self._request = b""
        self._answer: memoryview | None = None

    @property
    def events(self) -> int:
        """What poll(2) is to wait for."""
        return select.POLLIN if self._answer is None else select.POLLOUT

    def go_on(self, commands: Commands) -> bool:
        """Take or give what can be now; whether it has ended."""
        try:
            if self._answer is None:
                said = self.socket.recv(REQUEST_BYTES - len(self._request))
                self._request += said
                if said and b"\n" not in said and len(self._request) < REQUEST_BYTES:
                    return False
                self._answer = memoryview(_answer(commands, self._request.partition(b"\n")[0]))
                self.deadline_seconds = time.monotonic() + DEADLINE_SECONDS
            self._answer = self._answer[self.socket.send(self._answer) :]
        except BlockingIOError:
            return False
        except OSError:  # it went away
            return True
        return not self._answer


class ControlSocket:
    """Listens on `path` from construction on (mode 0600), answers from `start` on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            is_alive = remove_if_dead(path)
        except PermissionError:
            raise BadInput(f"control={path}: a socket of another user's is there; give another path") from None
        except OSError as error:  # of another type, say
            raise BadInput(f"control={path}: {error.strerror or error}; give another path") from None
        if is_alive:
            raise BadInput(f"control={path}: another server answers there; give each server a path of its own")
        try:
            self._listener = listen_for_owner(path, MAX_CONNECTIONS)
        except OSError as error:
            raise BadInput(f"control={path}: {error.strerror}; give a path in a folder that can be written") from None
        self._connections: dict[int, _Connection] = {}  # by descriptor, the oldest first
        self._thread: OwnThread | None = None
        self._closing = False

    def start(self, store: Store, status: Callable[[], dict[str, Any]], settings: Settings | None) -> None:
        """Answer from a thread; raises `EnvironmentProblem` if there can be none. Without settings,
        nothing can be set."""
        commands = _commands(store, status, settings)
        self._thread = OwnThread("zcache-control", lambda: self._serve(commands), goes_on=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and remove the path."""
        self._closing = True
        self._path.unlink(missing_ok=True)
        self._listener.shutdown(socket.SHUT_RDWR)
        if self._thread:
            self._thread.join(timeout=DEADLINE_SECONDS)
        self._listener.close()

    def _serve(self, commands: Commands) -> None:
        while not self._closing:
            for descriptor in self._wait():
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._connections and self._connections[descriptor].go_on(commands):
                    self._end(descriptor)
            now_seconds = time.monotonic()
            for descriptor, connection in list(self._connections.items()):
                if connection.deadline_seconds <= now_seconds:
                    self._end(descriptor)
        for descriptor in list(self._connections):
            self._end(descriptor)

    def _wait(self) -> list[int]:
        """The descriptors for which there is something to do; none at the first deadline."""
        poll = select.poll()
        for descriptor, connection in self._connections.items():
            poll.register(descriptor, connection.events)
        poll.register(self._listener, select.POLLIN)
        if not self._connections:
            return [descriptor for descriptor, _ in poll.poll()]
        first_seconds = min(connection.deadline_seconds for connection in self._connections.values())
        rest_ms = math.ceil(max(first_seconds - time.monotonic(), 0) * 1000)
        return [descriptor for descriptor, _ in poll.poll(rest_ms)]

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except OSError:
            if not self._closing:
                time.sleep(REST_SECONDS)
            return
        if len(self._connections) == MAX_CONNECTIONS:
            self._end(next(iter(self._connections)))
        self._connections[connected.fileno()] = _Connection(connected)

    def _end(self, descriptor: int) -> None:
        self._connections.pop(descriptor).socket.close()


def rehearse(store: Store, status: Callable[[], dict[str, Any]], settings: Settings) -> None:
    """Answer everything once, about a store of no consequence, so that the code is in memory."""
    commands = _commands(store, status, settings)
    for command in (*commands, f"{SET} admit=always", f"{SET} budget=1M"):
        _answer(commands, command.encode())


def _commands(store: Store, status: Callable[[], dict[str, Any]], settings: Settings | None) -> Commands:
    def audit(_argument: str) -> dict[str, Any]:
        try:
            return {"balanced": True, **check(store), "reasons": status().get("reasons", [])}
        except Imbalance as imbalance:
            return {"balanced": False, "imbalance": str(imbalance)}

    def refuse(word: str) -> dict[str, Any]:
        raise BadInput(f"{word}: nothing can be set here; start it anew")

    return {
        "status": lambda _argument: status(),
        "check": audit,
        "objects": lambda _argument: gather_objects(),
        SET: settings.set if settings else refuse,
    }


def _answer(commands: Commands, request: bytes) -> bytes:
    name, _, argument = request.decode("utf-8", "replace").strip().partition(" ")
    command = commands.get(name) if not argument or name == SET else None
    try:
        answer = (
            command(argument.strip()) if command else {"error": f"unknown command; there are {', '.join(commands)}"}
        )
    except BadInput as refusal:
        answer = {"refused": str(refusal)}
    except Exception as error:  # the thread must live to answer the next one
        answer = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps(answer).encode() + b"\n"
