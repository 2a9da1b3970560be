"""One socket to an engine, with or without TLS: lines and values, each within a deadline.

The socket never blocks. What is sent lies in the caller's memory until the kernel has it
(`sendmsg`), and values are received straight into the caller's buffers; beside that there is one
small buffer for lines, made when the wire is. TLS encrypts in OpenSSL's own buffers, of 16 KiB
each, and is sent part by part.

After any error of its own a wire is good for nothing more; its owner closes it. Locking: none, one
thread at a time.
"""

import errno
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from zcache.remote.url import Address

if TYPE_CHECKING:
    import ssl

#: For lines, which are heads of answers and texts of errors: the longest that is understood.
LINE_BYTES: Final = 16 << 10
#: As many parts as `sendmsg` takes (IOV_MAX).
_MAX_PARTS: Final = 1024
#: What may be in flight, each way; the kernel gives no more than `net.core.wmem_max` and
#: `rmem_max`. Fixed, so that it does not grow while memory is short.
_SOCKET_BYTES: Final = 1 << 20
#: A connection at rest that is dead is noticed in about 30 s, even if nobody asks anything.
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class ProtocolError(OSError):
    """What came is not an answer to what was asked, or TLS's checks failed. (EPROTO)"""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EPROTO, text)


class Wire:
    """Connects by `deadline` (of `time.monotonic`). Raises `OSError`, as all that it does."""

    def __init__(
        self, address: Address, tls: "ssl.SSLContext | None", server_name: str | None, deadline: float
    ) -> None:
        self._buffer = bytearray(LINE_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._stop = 0  # what has come and was not looked at, in the buffer
        self._is_tls = tls is not None
        self._again: tuple[type[OSError], ...] = (BlockingIOError,)
        self._waits_for: dict[type[OSError], int] = {}  # what TLS waits for, whatever it does
        self._tls_errors: tuple[type[OSError], ...] = ()
        self._socket = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            self._prepare(address.family)
            self._connect(address, deadline)
            if tls:
                self._begin_tls(tls, server_name, deadline)
            self._socket.setblocking(False)
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """It has not been closed."""
        return self._socket.fileno() >= 0

    @property
    def is_drained(self) -> bool:
        """Nothing has been received but what was read here."""
        return self._start == self._stop

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """At once: nothing is said to the other end. Does nothing the second time."""
        self._socket.close()

    def send(self, parts: list[bytes | memoryview], deadline: float) -> None:
        """All of them, one after the other; the list is used up."""
        _left(deadline)
        first = 0
        while first < len(parts):
            try:
                if self._is_tls:
                    sent = self._socket.send(parts[first])
                else:
                    sent = self._socket.sendmsg(parts[first : first + _MAX_PARTS], (), socket.MSG_NOSIGNAL)
            except self._again as error:
                self._wait(self._waits_for.get(type(error), select.POLLOUT), deadline)
                continue
            except self._tls_errors as error:
                raise ProtocolError(f"TLS: {error}") from error
            while first < len(parts) and sent >= len(parts[first]):
                sent -= len(parts[first])
                first += 1
            if sent:
                parts[first] = memoryview(parts[first])[sent:]

    def read_line(self, deadline: float) -> bytes:
        """The next one, without its end."""
        while (end := self._buffer.find(b"\r\n", self._start, self._stop)) < 0:
            self._fill(deadline)
        line = bytes(self._view[self._start : end])
        self._start = end + 2
        return line

    def read_value(self, target: memoryview, deadline: float) -> None:
        """As many bytes as there are in `target`, and the line's end after them."""
        self._read_bytes(target, deadline)
        while self._stop - self._start < 2:
            self._fill(deadline)
        if not self._buffer.startswith(b"\r\n", self._start, self._stop):
            raise ProtocolError("a value does not end where it should")
        self._start += 2

    def skip(self, length: int, room: memoryview, deadline: float) -> None:
        """So many bytes of a value; they pass through `room`."""
        while length:
            part = room[:length]
            self._read_bytes(part, deadline)
            length -= len(part)

    def _read_bytes(self, target: memoryview, deadline: float) -> None:
        """What has come is copied; what has not is received in place, and what follows it in the
        buffer."""
        held = min(self._stop - self._start, len(target))
        target[:held] = self._view[self._start : self._start + held]
        self._start += held
        while held < len(target):
            count = self._receive([target[held:], self._view], deadline)
            self._start, self._stop = 0, max(count - (len(target) - held), 0)
            held += count

    def _fill(self, deadline: float) -> None:
        """More in the buffer."""
        if self._start:
            held = self._stop - self._start
            self._view[:held] = self._view[self._start : self._stop]
            self._start, self._stop = 0, held
        if self._stop == LINE_BYTES:
            raise ProtocolError("a line that does not end")
        self._stop += self._receive([self._view[self._stop :]], deadline)

    def _receive(self, targets: list[memoryview], deadline: float) -> int:
        """At least one byte."""
        while True:
            try:
                count = self._socket.recv_into(targets[0]) if self._is_tls else self._socket.recvmsg_into(targets)[0]
            except self._again as error:
                self._wait(self._waits_for.get(type(error), select.POLLIN), deadline)
                continue
            except self._tls_errors as error:
                raise ProtocolError(f"TLS: {error}") from error
            if not count:
                raise ConnectionResetError(errno.ECONNRESET, "the engine has closed the connection")
            return count

    def _wait(self, events: int, deadline: float) -> None:
        self._poll.modify(self._socket, events)
        if not self._poll.poll(_left(deadline) * 1000):
            raise _too_late()

    def _prepare(self, family: int) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        if family == socket.AF_UNIX:
            return
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)

    def _connect(self, address: Address, deadline: float) -> None:
        self._socket.settimeout(_left(deadline))
        try:
            self._socket.connect(address.sockaddr)
        except TimeoutError:  # Python's own has no errno
            raise _too_late() from None
        except (OverflowError, ValueError) as error:
            raise ProtocolError(f"no address: {error}") from None

    def _begin_tls(self, tls: "ssl.SSLContext", server_name: str | None, deadline: float) -> None:
        import ssl  # who has a context has it already

        self._again = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
        self._waits_for = {ssl.SSLWantReadError: select.POLLIN, ssl.SSLWantWriteError: select.POLLOUT}
        self._tls_errors = (ssl.SSLError,)  # their numbers are OpenSSL's, and would be taken for errno
        try:
            (server_name or "").encode("idna")  # as it does, too late to close the socket
            wrapped = tls.wrap_socket(self._socket, server_hostname=server_name, do_handshake_on_connect=False)
        except ValueError as error:
            raise ProtocolError(f"TLS: server_name={server_name}: {error}") from None
        self._socket = wrapped
        wrapped.settimeout(_left(deadline))
        try:
            wrapped.do_handshake()
        except TimeoutError:  # an engine without TLS waits for the end of a line
            raise _too_late("no TLS handshake in time") from None
        except ssl.SSLCertVerificationError as error:
            raise ProtocolError(f"TLS: certificate refused: {error.verify_message}") from error
        except ssl.SSLError as error:
            raise ProtocolError(f"TLS: {error.reason or error}") from error


def _left(deadline: float) -> float:
    """Seconds, more than none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise _too_late()
    return left


def _too_late(what: str = "no answer in time") -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, what)
