"""Clients of the control socket as nobody would write them: malformed, huge, gone too early, never
done."""

import contextlib
import json
import random
import socket
import struct
from pathlib import Path

COMMANDS = (b"status\n", b"check\n")

#: Clients that have not finished, at a time: more than the server keeps.
HELD = 24
PATIENCE = struct.pack("ll", 60, 0)
#: Clients that wait for their answers at a time.
WAITING = 8


class RudeClients:
    """Throws one request after the other at a control socket; whoever is still connected ends with
    `close`."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self._path = str(path)
        self._rng = rng
        self._held: list[socket.socket] = []
        self._waiting: list[socket.socket] = []
        self.refused = 0  # answered that there is no such command

    def throw(self, count: int) -> None:
        for _ in range(count):
            self._throw()
            if len(self._waiting) == WAITING:
                self._hear()

    def close(self) -> None:
        self._hear()
        while self._held:
            self._held.pop().close()

    def _throw(self) -> None:
        """One connection, and one thing said or not said. If its answer is waited for, it is one
        line of JSON."""
        rng = self._rng
        client = socket.socket(socket.AF_UNIX)
        # Not settimeout: a connect that does not block fails at once on a full queue.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, PATIENCE)
        client.connect(self._path)
        client.settimeout(60)
        request = self._request()
        try:
            match rng.randrange(8):
                case 0:  # gone before the answer
                    client.sendall(request)
                case 1:  # gone in the middle
                    client.sendall(request[: rng.randrange(len(request) + 1)])
                    client.shutdown(rng.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
                case 2:  # stays, says no more, and reads nothing
                    client.sendall(request.rstrip(b"\n")[:200])
                    self._held.append(client)
                    if len(self._held) > HELD:
                        self._held.pop(rng.randrange(HELD)).close()
                    return
                case 3:  # in pieces
                    for position in range(0, min(len(request), 40), 8):
                        client.sendall(request[position : position + 8])
                    client.shutdown(socket.SHUT_WR)
                    self._waiting.append(client)
                    return
                case _:
                    client.sendall(request)
                    client.shutdown(socket.SHUT_WR)
                    self._waiting.append(client)
                    return
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server takes no more than it needs
        client.close()

    def _request(self) -> bytes:
        rng = self._rng
        match rng.randrange(10):
            case 0:
                return b""
            case 1:
                return rng.randbytes(rng.choice([1_000, 10_000, 300_000])) if rng.random() < 0.05 else b"\0" * 256
            case 2:
                return rng.choice(
                    [b"\0", b"\n", b"\r\n", b"\xff\xfe", b"st\xc3\xa4tus\n", b'{"status": 1}\n', b"status\0\n"]
                )
            case 3 if rng.random() < 0.05:
                return rng.choice(COMMANDS)
            case 3 | 4 | 5 | 6:
                return self._mutated(rng.choice(COMMANDS))
            case _:
                return rng.randbytes(rng.randrange(300))

    def _mutated(self, request: bytes) -> bytes:
        rng = self._rng
        changed = bytearray(request * rng.choice([1, 1, 1, 2, 50]))
        for _ in range(rng.randrange(2, 6)):
            spot = rng.randrange(len(changed) + 1)
            changed[spot : spot + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        return bytes(changed)

    def _hear(self) -> None:
        while self._waiting:
            with self._waiting.pop() as client, contextlib.suppress(ConnectionResetError):
                answer = b""
                while part := client.recv(65536):
                    answer += part
                assert answer.endswith(b"\n") and answer.count(b"\n") == 1, answer[:200]
                self.refused += "unknown command" in json.loads(answer).get("error", "")
