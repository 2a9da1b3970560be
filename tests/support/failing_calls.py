"""Make one system call of a program, or of any that it starts, fail: the n-th that asks the kernel
for something.

Not by wrapping functions: glibc's own calls (a thread's stack, the heap as it grows) go past any
wrapper. A seccomp filter sends each call of the kinds in `CALLS` here before it is made
(seccomp_unotify(2)), and this lets it happen, or answers it with an error. The filter is inherited
by all threads and children.

What counts begins, in each program, with `umask(0177)`: server and keeper call that once they know
what they were told, and before they make anything. x86-64 only: the numbers of system calls are
its.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zcache.linux.process import wait_for_end

#: By which a program says that it has read its configuration.
MARK: Final = 0o177
_UMASK: Final = 95
_EXECVE: Final = 59
_BRK: Final = 12

#: Name, and what it fails with, by number.
CALLS: Final = {
    2: ("open", errno.EMFILE),
    9: ("mmap", errno.ENOMEM),
    10: ("mprotect", errno.ENOMEM),
    _BRK: ("brk", errno.ENOMEM),
    25: ("mremap", errno.ENOMEM),
    28: ("madvise", errno.ENOMEM),
    32: ("dup", errno.EMFILE),
    41: ("socket", errno.EMFILE),
    49: ("bind", errno.EADDRINUSE),
    50: ("listen", errno.EADDRINUSE),
    53: ("socketpair", errno.EMFILE),
    56: ("clone", errno.EAGAIN),
    57: ("fork", errno.EAGAIN),
    58: ("vfork", errno.EAGAIN),
    72: ("fcntl", errno.EPERM),
    73: ("flock", errno.ENOLCK),
    77: ("ftruncate", errno.EFBIG),
    126: ("capset", errno.EPERM),
    144: ("sched_setscheduler", errno.EPERM),
    151: ("mlockall", errno.ENOMEM),
    157: ("prctl", errno.EPERM),
    257: ("openat", errno.EMFILE),
    285: ("fallocate", errno.ENOSPC),
    292: ("dup3", errno.EMFILE),
    293: ("pipe2", errno.EMFILE),
    302: ("prlimit64", errno.EPERM),
    319: ("memfd_create", errno.EMFILE),
    434: ("pidfd_open", errno.EMFILE),
    435: ("clone3", errno.EAGAIN),
    444: ("landlock_create_ruleset", errno.EOPNOTSUPP),
    445: ("landlock_add_rule", errno.EINVAL),
    446: ("landlock_restrict_self", errno.E2BIG),
}
#: Of these only what asks for something: fcntl's seals and pipe sizes, madvise's populating.
_ARGUMENTS: Final = {72: (1, (1031, 1033)), 28: (2, (22, 23))}

_AUDIT_ARCH_X86_64: Final = 0xC000003E
_RET_NOTIFY: Final = 0x7FC00000
_RET_ALLOW: Final = 0x7FFF0000
_SECCOMP: Final = 317
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 8
_PIDFD_GETFD: Final = 438
#: How /proc shows one; and in which process it is going to be, as which descriptor.
_LISTENER: Final = "anon_inode:seccomp notify"
_WHERE: Final = struct.Struct("=ii")
_CONTINUE: Final = 1
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_NOTICE: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Call:
    """One that was made, by the thread of that name in the program of that name."""

    program: str
    thread: str
    name: str
    arguments: tuple[int, ...]
    path: str = ""

    def __str__(self) -> str:
        return f"{self.program}/{self.thread}: {self.name}({self.path or ', '.join(map(hex, self.arguments[:4]))})"


Failing = int | Callable[[Call], bool]


class FailingCalls:
    """Runs a program with its n-th call failing (from 1; 0: none), or the first like that; held, it
    never returns. `calls` is what was counted."""

    def __init__(self, failing: "Failing", *, is_held: bool = False) -> None:
        self._failing = failing
        self._is_held = is_held
        self.calls: list[Call] = []
        self.failed: Call | None = None
        self._marked: set[int] = set()  # processes that are counted
        self._unmarked: set[int] = set()
        self._listener = -1
        self._stop, self._stopped = os.pipe()

    def start(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """As `subprocess.Popen` does."""
        ours, theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._answer_all, args=(ours,), daemon=True)
        self._thread.start()
        with theirs:
            return subprocess.Popen(command, preexec_fn=lambda: _install(theirs), **options)  # noqa: PLW1509 (system calls only)

    def close(self) -> None:
        """When all programs have ended; what they call now fails with ENOSYS."""
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        os.close(self._listener)

    def _answer_all(self, channel: socket.socket) -> None:
        with channel:
            process, descriptor = _WHERE.unpack(channel.recv(_WHERE.size))
            self._listener = _fetch(process, descriptor)
            channel.send(b"f")
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop, 0)
        while True:
            ready = dict(poll.poll())
            if self._stop in ready:
                return
            if not ready[self._listener] & select.POLLIN:
                poll.unregister(self._listener)  # nobody is left
                continue
            notice = bytearray(_NOTICE.size)
            try:
                fcntl.ioctl(self._listener, _RECEIVE, notice)
            except OSError:  # the caller was ended meanwhile
                continue
            identity, thread, _, number, _, _, *arguments = _NOTICE.unpack(notice)
            answer = self._decide(thread, number, arguments)
            if answer:
                with contextlib.suppress(OSError):
                    fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(identity, *answer))

    def _decide(self, thread: int, number: int, arguments: list[int]) -> tuple[int, int, int] | None:
        """Value, error and flags of the answer, if there is to be one."""
        as_it_is = 0, 0, _CONTINUE
        try:
            process, parent = _process_of(thread)
        except OSError:
            return as_it_is
        if number == _UMASK:
            if arguments[0] == MARK:
                self._marked.add(process)
                self._unmarked.discard(process)
            return as_it_is
        if number == _EXECVE:
            self._marked.discard(process)
            self._unmarked.add(process)
            return as_it_is
        if process not in self._marked:
            if process in self._unmarked or parent not in self._marked:
                return as_it_is
            self._marked.add(process)  # a copy of one that is counted
        name, error = CALLS[number]
        call = Call(_comm(process), _comm(thread), name, tuple(arguments), _path(thread, name, arguments))
        self.calls.append(call)
        failing = self._failing
        if not self.failed and (len(self.calls) == failing if isinstance(failing, int) else failing(call)):
            self.failed = call
            if self._is_held:
                return None
            if number == _BRK:  # says where the heap ends, and has no errors
                return _heap_end(process), 0, 0
            return 0, -error, 0
        return as_it_is


def _install(channel: socket.socket) -> None:
    """In the child: from here on calls are answered by whoever has the listener.

    Where that is going to be is said before. Whoever had to be given it would wait for ever, now
    and then: to give it takes memory of Python's, which may have to ask for some, and nobody
    answers yet (seen)."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    load, equal, answer = 0x20, 0x15, 0x06
    words = [step(load, 4), step(equal, _AUDIT_ARCH_X86_64, 1, 0), step(answer, _RET_ALLOW), step(load, 0)]
    for number in (_UMASK, _EXECVE, *CALLS):
        if number in _ARGUMENTS:
            position, values = _ARGUMENTS[number]
            words.append(step(equal, number, 0, len(values) + 3))
            words.append(step(load, 16 + 8 * position))
            for index, value in enumerate(values):
                words.append(step(equal, value, len(values) - index, 0))
            words.append(step(answer, _RET_ALLOW))
            words.append(step(answer, _RET_NOTIFY))
        else:
            words += [step(equal, number, 0, 1), step(answer, _RET_NOTIFY)]
    words.append(step(answer, _RET_ALLOW))
    program = ctypes.create_string_buffer(b"".join(words))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(words), ctypes.addressof(program)))
    next_one = os.dup(channel.fileno())
    os.close(next_one)
    channel.send(_WHERE.pack(os.getpid(), next_one))
    if _libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, header) < 0:  # close-on-exec
        raise OSError(ctypes.get_errno(), "seccomp")
    channel.recv(1)  # that it was fetched: all descriptors are closed next


def _fetch(process: int, descriptor: int) -> int:
    """That listener, once it is there."""
    pidfd = os.pidfd_open(process)
    try:
        while True:
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"/proc/{process}/fd/{descriptor}") == _LISTENER:  # noqa: PTH115 (it is no path)
                    break
            if wait_for_end(pidfd, 0.001):
                raise ChildProcessError("it ended before there was a listener")
        listener: int = _libc.syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
        if listener < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return listener
    finally:
        os.close(pidfd)


def _process_of(thread: int) -> tuple[int, int]:
    """Its process, and that one's parent."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{thread}/status").read_text().splitlines() if ":" in line)
    return int(fields["Tgid"]), int(fields["PPid"])


def _comm(thread: int) -> str:
    try:
        return Path(f"/proc/{thread}/comm").read_text().strip()
    except OSError:
        return "?"


def _path(thread: int, name: str, arguments: list[int]) -> str:
    if name not in ("open", "openat"):
        return ""
    with contextlib.suppress(OSError), Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
        memory.seek(arguments[0 if name == "open" else 1])
        return memory.read(256).partition(b"\0")[0].decode(errors="replace")
    return ""


def _heap_end(process: int) -> int:
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            return int(line.split()[0].split("-")[1], 16)
    return 0
