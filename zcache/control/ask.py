"""Asking a server at its control socket (`control.py`); apart from it, for who asks needs nothing
of the store."""

import json
import socket
import struct
from pathlib import Path
from typing import Any, Final

from zcache.errors import BadInput, EnvironmentProblem

#: What a server reads of a request.
REQUEST_BYTES: Final = 256
#: For our turn, and then for the answer.
ASK_SECONDS: Final = 60
#: The same for `check`: 150 million pages, on a host.
CHECK_SECONDS: Final = 600


def ask(path: Path, command: str) -> dict[str, Any]:
    """Send one command; raises `EnvironmentProblem` if nobody answers, or only that it could not,
    and `BadInput` if it is refused."""
    request = command.encode(errors="replace") + b"\n"
    if len(request) >= REQUEST_BYTES:
        raise BadInput(f"{command[:40]}…: too long; give at most {REQUEST_BYTES - 2} characters")
    seconds = CHECK_SECONDS if command == "check" else ASK_SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        # Not settimeout: a connect that does not block fails at once while others wait to be
        # accepted.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))
        try:
            connection.connect(str(path))
            connection.settimeout(seconds)
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            decoded = json.loads(answer)
            if not isinstance(decoded, dict):
                raise ValueError("what it says is no answer")
        except PermissionError:
            raise EnvironmentProblem(f"the server at {path} answers its owner only: run this as root") from None
        except (BlockingIOError, TimeoutError):
            raise EnvironmentProblem(f"the server at {path} has not answered for {seconds} s") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise EnvironmentProblem(f"no server answers at {path}: {reason}") from None
    if "refused" in decoded:
        raise BadInput(decoded["refused"])
    if "error" in decoded:
        raise EnvironmentProblem(f"the server at {path} could not answer {command!r}: {decoded['error']}")
    return decoded
