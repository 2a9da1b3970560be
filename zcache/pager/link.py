"""What a client has open for a region: the file of its memory, its userfaultfd, and its pager.

Only numbers of descriptors are kept, and no objects that Python closes by itself, in an order of
its own, when a program ends: then the kernel closes all of them, when nothing of the client is left
that could touch the region. A child made by fork(2) has none of it.
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
from zcache.linux.sockets import peer_pid
from zcache.pager.region_file import new_memfd

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
    `connect` has its faults served. At `forgetting`, then, the pager takes pages to forget
    (`zcache.pager.messages`)."""

    def __init__(self, size_bytes: int, user_mode_only: bool = False) -> None:
        self._size_bytes = size_bytes
        self._keeper: subprocess.Popen[bytes] | None = None
        self._socket = self._life = self.forgetting = self._descriptor = -1
        self._asked = 0
        self._era = 0
        self._heard = b""
        self._turn = threading.Lock()
        self.memfd = new_memfd(size_bytes)
        try:
            self._descriptor = _userfaultfd(user_mode_only)
        except BaseException:
            self.close()
            raise

    def connect(self, start: int, limit_bytes: int, parameters: dict[str, str], pager: Path | None) -> None:
        """The file is mapped at `start`. Served by the pager at that socket, or by one of its own.
        Raises `BadInput` if the parameters are refused."""
        mode = userfaultfd.UFFDIO_REGISTER_MODE_MISSING | userfaultfd.UFFDIO_REGISTER_MODE_WP
        userfaultfd.register(self._descriptor, start, self._size_bytes, mode)
        wanted = {"pid": os.getpid(), "start": start, "size": self._size_bytes, "limit": limit_bytes}
        self._socket = _connected(pager) if pager else self._started()
        our_life, its_life = socket.socketpair()
        our_forgetting, its_forgetting = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._life, self.forgetting = our_life.detach(), our_forgetting.detach()
        with its_life, its_forgetting:
            descriptors = [self._descriptor, self.memfd, its_forgetting.fileno(), its_life.fileno()]
            with socket.socket(fileno=os.dup(self._socket)) as sending:
                request = json.dumps(wanted | {"parameters": parameters})
                with contextlib.suppress(BrokenPipeError):  # `_hear` says it
                    socket.send_fds(sending, [request.encode() + b"\n"], descriptors)
        self._hear(0, b"")
        self._signal_at_end()

    def _started(self) -> int:
        """A socket to a keeper of our own."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._keeper = _start_keeper(theirs)
        return ours.detach()

    @property
    def keeper_pid(self) -> int:
        """Of the process that holds the region, too; 0 once it is closed."""
        if self._keeper:
            return self._keeper.pid
        if self._socket < 0:
            return 0
        with socket.socket(fileno=os.dup(self._socket)) as ours:
            return peer_pid(ours)

    def ask(self, *words: object) -> dict[str, Any]:
        """Have the pager do something, or say its figures. Raises `EnvironmentProblem` if there is
        none: in a child, or after the end."""
        if self._socket < 0:  # before the lock, which may be held for good in a child
            raise EnvironmentProblem("the region is closed, or another process's")
        with self._turn:
            self._asked += 1
            request = " ".join(map(str, (self._asked, *words))).encode()
            self._say(request)
            return self._hear(self._asked, request)

    def close(self) -> None:
        """Nobody may touch the region any more: where the pager would have been asked, there would
        be zeros."""
        if self._life >= 0:  # whoever has it, too, by fork(2), must get no signal
            fcntl.fcntl(self._life, fcntl.F_SETFL, os.O_NONBLOCK)
        if self._socket >= 0:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._socket)) as ended:
                ended.shutdown(socket.SHUT_RDWR)
        if self._keeper:
            self._keeper.wait()
        self.abandon()

    def abandon(self) -> None:
        """Close what is open, and no more: in a child."""
        for name in ("_life", "_socket", "forgetting", "_descriptor", "memfd"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
            setattr(self, name, -1)
        self._keeper = None

    def _say(self, request: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # `_hear` says it
            os.write(self._socket, b"%d %s\n" % (self._era, request))

    def _hear(self, number: int, request: bytes) -> dict[str, Any]:
        """The answer to the request of that number; those before it were given up, by an exception.
        It is asked again when an era is heard of."""
        while True:
            answer = self._next_line()
            if "refused" in answer:
                raise BadInput(answer["refused"])
            if answer["era"] != self._era:
                self._era = answer["era"]
                if request:
                    self._say(request)
            if answer["number"] == number:
                return {key: value for key, value in answer.items() if key not in ("number", "era")}

    def _next_line(self) -> dict[str, Any]:
        while True:
            while b"\n" not in self._heard:
                try:
                    part = os.read(self._socket, 1 << 16)
                except ConnectionError:
                    part = b""
                if not part:
                    how = f" (exit status {self._keeper.wait()})" if self._keeper else ""
                    raise EnvironmentProblem(f"the pager has ended{how}")
                self._heard += part
            line, _, self._heard = self._heard.partition(b"\n")
            with contextlib.suppress(ValueError):  # it died before the end of the line
                words: dict[str, Any] = json.loads(line)
                return words

    def _signal_at_end(self) -> None:
        """SIGBUS for this process when the other end is closed: when the pager has ended. Pages
        that are with it are lost then, and who touches one would wait for good; no thread of
        Python's can see to that, for the one that waits may hold the interpreter's lock."""
        fcntl.fcntl(self._life, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._life, F_SETSIG, signal.SIGBUS)
        fcntl.fcntl(self._life, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
        with contextlib.suppress(BlockingIOError):
            os.read(self._life, 1)
            raise EnvironmentProblem("the pager has ended")


def _userfaultfd(user_mode_only: bool) -> int:
    try:
        descriptor = userfaultfd.open_descriptor(user_mode_only=user_mode_only)
    except PermissionError:
        raise EnvironmentProblem(
            "userfaultfd is not allowed: be root, or let root grant it (zcache/pager/README.md has a rule for udev; "
            "until the next boot: chmod o+rw /dev/userfaultfd); or give user_mode_only=True (zcache run "
            "--user-mode-only), if no system call is to read or write the arrays"
        ) from None
    except OSError as error:
        raise EnvironmentProblem(f"this kernel has no userfaultfd: {error.strerror}") from None
    try:
        userfaultfd.handshake(descriptor, WANTED_FEATURES)
    except OSError:
        os.close(descriptor)
        raise EnvironmentProblem("userfaultfd cannot write-protect shared memory here; Linux 5.19 can") from None
    return descriptor


def _connected(pager: Path) -> int:
    ours = socket.socket(socket.AF_UNIX)
    try:
        ours.connect(str(pager))
    except OSError as error:
        ours.close()
        raise EnvironmentProblem(
            f"pager={pager}: {error.strerror or error}; start one there: zcache pager {pager} size=SIZE"
        ) from None
    return ours.detach()


def _start_keeper(client: socket.socket) -> "subprocess.Popen[bytes]":
    """In a session of its own: a terminal's Ctrl-C is for the client."""
    places = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "zcache.pager", str(client.fileno())],
        pass_fds=[client.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        start_new_session=True,
    )
