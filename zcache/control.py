"""The control socket: one line in (`status`, `check` or `objects`), one line of JSON out, and the connection ends.

One connection at a time, each with a deadline and a limit on what it may send, served by a thread of its own that
takes the store's lock only for a snapshot. Nothing that a client does here can hold up a page.
"""

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from zcache.check import check
from zcache.errors import BadInput, EnvironmentProblem, Imbalance
from zcache.hardening.threads import begin_own_thread
from zcache.status import gather_objects
from zcache.store import Store

REQUEST_BYTES: Final = 256
DEADLINE_SECONDS: Final = 5.0

#: How long a client of ours waits for its turn, and then for its answer: an audit of a large store takes a while.
ASK_SECONDS: Final = 60


class ControlSocket:
    """Listens on `path` from construction on (mode 0600), answers from `start` on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.is_socket():
            if _is_alive(path):
                raise BadInput(f"control={path}: another server answers there; give each server a path of its own")
            path.unlink()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        except OSError as error:
            self._listener.close()
            raise BadInput(f"control={path}: {error.strerror}; give a path in a folder that can be written") from None
        finally:
            os.umask(mask)
        self._listener.listen(4)
        self._thread: threading.Thread | None = None
        self._closing = False

    def start(self, store: Store, status: Callable[[], dict[str, Any]]) -> None:
        """Answer from a thread. The answers are tried once before, so that their code is in memory."""

        def audit() -> dict[str, Any]:
            try:
                return {"balanced": True, **check(store)}
            except Imbalance as imbalance:
                return {"balanced": False, "imbalance": str(imbalance)}

        commands = {"status": status, "check": audit, "objects": gather_objects}
        for command in commands:
            _answer(commands, command)
        self._thread = threading.Thread(target=self._serve, args=(commands,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and remove the path."""
        self._closing = True
        self._path.unlink(missing_ok=True)
        self._listener.shutdown(socket.SHUT_RDWR)
        if self._thread:
            self._thread.join(timeout=DEADLINE_SECONDS)
        self._listener.close()

    def _serve(self, commands: dict[str, Callable[[], dict[str, Any]]]) -> None:
        begin_own_thread("zcache-control")
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if not self._closing:
                    time.sleep(0.1)
                continue
            with connection, contextlib.suppress(OSError):  # a client that went away, or is too slow
                connection.settimeout(DEADLINE_SECONDS)
                request = connection.recv(REQUEST_BYTES)
                connection.sendall(_answer(commands, request.decode("ascii", "replace").strip()))


def _answer(commands: dict[str, Callable[[], dict[str, Any]]], request: str) -> bytes:
    command = commands.get(request)
    try:
        answer = command() if command else {"error": f"unknown command; there are {', '.join(commands)}"}
    except Exception as error:  # the thread must live to answer the next one
        answer = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps(answer).encode() + b"\n"


def _is_alive(path: Path) -> bool:
    """Whether somebody listens; a listener that is busy (EAGAIN) does, too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True
        return True


def ask(path: Path, command: str) -> dict[str, Any]:
    """Client: send one command; raises `EnvironmentProblem` if nobody answers, or only that it could not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        # Not settimeout: a connect that does not block fails at once while others wait to be accepted.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", ASK_SECONDS, 0))
        try:
            connection.connect(str(path))
            connection.settimeout(ASK_SECONDS)
            connection.sendall(command.encode() + b"\n")
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            decoded: dict[str, Any] = json.loads(answer)
        except PermissionError:
            raise EnvironmentProblem(f"the server at {path} answers its owner only: run this as root") from None
        except (OSError, ValueError) as error:
            raise EnvironmentProblem(f"no server answers at {path}: {error}; start one with control={path}") from None
    if "error" in decoded:
        raise EnvironmentProblem(f"the server at {path} could not answer {command!r}: {decoded['error']}")
    return decoded
