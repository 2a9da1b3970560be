"""What a client has open for a region: the file of its memory, its userfaultfd, and its pager.

Only numbers of descriptors are kept, and no objects that Python closes by itself, in an order of
its own, when a program ends: then the kernel closes all of them, when nothing of the client is left
that could touch the region.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

from zcache.errors import BadInput, EnvironmentProblem
from zcache.linux import userfaultfd

F_SETSIG: Final = 10  # of which Python does not know
WANTED_FEATURES: Final = (
    userfaultfd.UFFD_FEATURE_PAGEFAULT_FLAG_WP
    | userfaultfd.UFFD_FEATURE_MISSING_SHMEM
    | userfaultfd.UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    | userfaultfd.UFFD_FEATURE_THREAD_ID
)
REPOSITORY: Final = Path(__file__).resolve().parents[2]


class Link:
    """For a region of `size_bytes`. `memfd` is the file of its memory; once that is mapped,
    `connect` has its faults served. At `forgetting`, then, the pager takes pages to forget: two
    words, the first and the one behind the last; and answers with a byte."""

    def __init__(self, size_bytes: int) -> None:
        self._pager: subprocess.Popen[bytes] | None = None
        self._socket = -1
        self._heard = b""
        self._turn = threading.Lock()
        with contextlib.ExitStack() as undo:
            self.memfd = os.memfd_create("zcache-region", os.MFD_CLOEXEC)
            undo.callback(os.close, self.memfd)
            os.ftruncate(self.memfd, size_bytes)
            self._descriptor = _userfaultfd()
            undo.callback(os.close, self._descriptor)
            undo.callback(self._wait_for_pager)
            self._undo = undo.pop_all()
        self._size_bytes = size_bytes

    def connect(self, start: int, limit_bytes: int, parameters: dict[str, str]) -> None:
        """The file is mapped at `start`. Raises `BadInput` if the pager refuses the parameters."""
        mode = userfaultfd.UFFDIO_REGISTER_MODE_MISSING | userfaultfd.UFFDIO_REGISTER_MODE_WP
        userfaultfd.register(self._descriptor, start, self._size_bytes, mode)
        asked = {
            "pid": os.getpid(),
            "start": start,
            "size": self._size_bytes,
            "limit": limit_bytes,
            "parameters": parameters,
        }
        ours, theirs = socket.socketpair()
        our_life, its_life = socket.socketpair()
        our_forgetting, its_forgetting = socket.socketpair()
        self._socket, life, self.forgetting = ours.detach(), our_life.detach(), our_forgetting.detach()
        for descriptor in (self._socket, life, self.forgetting):
            self._undo.callback(os.close, descriptor)
        with theirs, its_life, its_forgetting:
            self._pager = _start_pager(theirs, its_life)
            descriptors = [self._descriptor, self.memfd, its_forgetting.fileno()]
            with socket.socket(fileno=os.dup(self._socket)) as sending:
                socket.send_fds(sending, [json.dumps(asked).encode() + b"\n"], descriptors)
        self._hear()
        _signal_at_end(life)

    def ask(self, *words: object) -> dict[str, Any]:
        """Have the pager do something, or say its figures."""
        with self._turn:
            os.write(self._socket, " ".join(map(str, words)).encode() + b"\n")
            return self._hear()

    def close(self) -> None:
        """Nobody may touch the region any more: where the pager would have been asked, there would
        be zeros."""
        self._undo.close()

    def _hear(self) -> dict[str, Any]:
        while b"\n" not in self._heard:
            part = os.read(self._socket, 1 << 16)
            if not part:
                raise EnvironmentProblem(f"the pager has ended (exit status {self._wait_for_pager()})")
            self._heard += part
        line, _, self._heard = self._heard.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise BadInput(answer["refused"])
        return answer

    def _wait_for_pager(self) -> int:
        return self._pager.wait() if self._pager else 0


def _userfaultfd() -> int:
    try:
        descriptor = userfaultfd.open_descriptor()
    except PermissionError:
        raise EnvironmentProblem(
            "userfaultfd is not allowed: as root, chmod o+rw /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1"
        ) from None
    except OSError as error:
        raise EnvironmentProblem(f"this kernel has no userfaultfd: {error.strerror}") from None
    try:
        userfaultfd.handshake(descriptor, WANTED_FEATURES)
    except OSError:
        os.close(descriptor)
        raise EnvironmentProblem("userfaultfd cannot write-protect shared memory here; Linux 5.19 can") from None
    return descriptor


def _start_pager(client: socket.socket, life: socket.socket) -> "subprocess.Popen[bytes]":
    """In a session of its own: a terminal's Ctrl-C is for the client."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "zcache.pager", str(client.fileno())],
        pass_fds=[client.fileno(), life.fileno()],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )


def _signal_at_end(life: int) -> None:
    """SIGBUS for this process when the other end is closed: when the pager has ended. Pages that
    are with it are lost then, and who touches one would wait for good; no thread of Python's can
    see to that, for the one that waits may hold the interpreter's lock."""
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, F_SETSIG, signal.SIGBUS)
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
