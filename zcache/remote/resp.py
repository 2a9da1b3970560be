"""RESP2, the protocol of Redis and Valkey, over one connection: what is on the path of a page.

Frames are sent from where they lie, and received where they shall lie (`zcache.remote.wire`), so a
batch of them asks the system for no memory to speak of: a few short-lived bytes for each head.

Each call has one deadline for all that it does. After any error but `Refused` the connection is
closed: an answer that comes late never meets another request. `Refused` is an answer; all of the
batch's answers have been read when it is raised, and the connection goes on. Whatever an engine
sends, no more than `MAX_REPLY_BYTES` is made of it.

No more than `MAX_IN_FLIGHT` keys, or `MAX_IN_FLIGHT_BYTES`, are asked for before they are answered:
an engine holds what it has not sent yet in its own memory, and the kernel holds the rest in ours.

Locking: none. One thread at a time, which is its owner's business. Cost: for a batch, one
`sendmsg`, a `poll` or two, and one or two `recvmsg` for each frame.
"""

import contextlib
import errno
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from zcache.remote.url import DEFAULT_USER, Address
from zcache.remote.wire import ProtocolError, Wire

if TYPE_CHECKING:
    import ssl

__all__ = ["MAX_IN_FLIGHT", "MAX_IN_FLIGHT_BYTES", "Connection", "ProtocolError", "Refused", "Reply"]

#: 16 frames of 64 KiB, which the next limit allows, too.
MAX_IN_FLIGHT: Final = 16
#: Of keys without values.
MAX_ASKED: Final = 256
MAX_IN_FLIGHT_BYTES: Final = 1 << 20
#: Of what is off the path: the accounts of some thousand machines, the map of a large Cluster.
MAX_REPLY_BYTES: Final = 4 << 20
#: Arrays in arrays: CLUSTER SLOTS has four.
_MAX_DEPTH: Final = 8
#: What an object of Python's is taken to cost, in that limit.
_OBJECT_BYTES: Final = 64
#: Of a refusal; the rest says no more.
_MAX_TEXT: Final = 300

Reply: TypeAlias = "bytes | int | list[Reply] | None"


class Refused(OSError):
    """An answer that says no: `word` is its first, such as OOM, MOVED, NOPERM, READONLY, WRONGPASS;
    `text` is all of it. (ENOSPC: OOM; EIO)"""

    def __init__(self, text: str) -> None:
        self.word = text.partition(" ")[0]
        self.text = text
        super().__init__(errno.ENOSPC if self.word == "OOM" else errno.EIO, text)


class Connection:
    """Connects, and logs in if there is a user or a password, within `seconds`.

    Raises `Refused` for a wrong password, and other `OSError`s. It is closed by `close`, or by an
    error. Keys are bytes; frames are memoryviews of bytes.
    """

    def __init__(
        self,
        address: Address,
        *,
        user: str = DEFAULT_USER,
        password: str = "",
        tls: "ssl.SSLContext | None" = None,
        server_name: str | None = None,
        seconds: float,
    ) -> None:
        deadline = time.monotonic() + seconds
        self._refusal = ""  # the first one in this batch
        self._room_bytes = 0  # what this answer may still take
        # The keys and values that are being set, and how many of them were sent.
        self._set: tuple[Sequence[bytes], Sequence[Sequence[memoryview]], int] | None = None
        self._wire = Wire(address, tls, server_name, deadline)
        if password or user != DEFAULT_USER:
            try:  # which closes it by itself, but for a refusal
                self.call("AUTH", user, password, seconds=deadline - time.monotonic())
            except Refused as error:  # a command that an engine does not know is repeated by it
                self.close()
                raise Refused(error.text.replace(password or "\0", "…")) from None

    @property
    def is_open(self) -> bool:
        """No error has closed it. The other end may be gone nevertheless."""
        return self._wire.is_open

    def fileno(self) -> int:
        return self._wire.fileno()

    def close(self) -> None:
        """At once: nothing is said to the other end. Does nothing the second time."""
        self._set = None
        self._wire.close()

    def get_all(self, keys: Sequence[bytes], buffers: Sequence[memoryview], seconds: float) -> list[bool]:
        """Receive the values of `keys` in `buffers`, which are as long as they are; whether each
        was there. (In a buffer whose value was not may be anything.)"""
        found: list[bool] = []
        with self._exchange(seconds) as deadline:
            lengths = list(map(len, buffers))
            while len(found) < len(keys) and not self._refusal:
                stop = _part(len(found), lengths)
                requests = [b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key) for key in keys[len(found) : stop]]
                self._wire.send([b"".join(requests)], deadline)
                while len(found) < stop:
                    found.append(self._read_value(buffers[len(found)], deadline))
        return found

    def set_all(self, keys: Sequence[bytes], values: Sequence[Sequence[memoryview]], seconds: float) -> list[str]:
        """Store each value, which is its parts one after the other, under its key; "" for each that
        is stored, or why it was refused."""
        deadline = time.monotonic() + seconds
        self.begin_set(keys, values, seconds)
        return self.end_set(deadline - time.monotonic())

    def begin_set(self, keys: Sequence[bytes], values: Sequence[Sequence[memoryview]], seconds: float) -> None:
        """The first half of `set_all`: what may be in flight is sent, and no answer waited for. The
        values stay as they are until `end_set`, before which nothing else is asked here."""
        with self._exchange(seconds) as deadline:
            self._set = keys, values, self._send_set(keys, values, 0, deadline)

    def end_set(self, seconds: float) -> list[str]:
        """The second half of `set_all`: send what is left, and wait for all answers. For each key
        "", or why it was refused."""
        answers: list[str] = []
        begun = self._set
        with self._exchange(seconds, begun) as deadline:
            assert begun, "begin_set comes first"
            keys, values, stop = begun
            while True:
                while len(answers) < stop:
                    answers.append(self._read_status(deadline))
                if stop == len(keys):
                    break
                stop = self._send_set(keys, values, stop, deadline)
            self._set = None
        return answers

    def unlink_all(self, keys: Sequence[bytes], seconds: float) -> int:
        """Have the engine forget them; how many there were."""
        count = 0
        with self._exchange(seconds) as deadline:
            for start in range(0, len(keys), MAX_ASKED):
                self._wire.send([_request(b"UNLINK", *keys[start : start + MAX_ASKED])], deadline)
                said = self._read_reply(deadline)
                if self._refusal:
                    break
                if not isinstance(said, int):
                    raise ProtocolError("UNLINK was not answered with a number")
                count += said
        return count

    def exist_all(self, keys: Sequence[bytes], seconds: float) -> list[bool]:
        """Whether each is there."""
        found: list[bool] = []
        with self._exchange(seconds) as deadline:
            for start in range(0, len(keys), MAX_ASKED):
                asked = keys[start : start + MAX_ASKED]
                self._wire.send([b"".join(_request(b"EXISTS", key) for key in asked)], deadline)
                for _ in asked:
                    said = self._read_reply(deadline)
                    if said not in (0, 1) and not self._refusal:
                        raise ProtocolError("EXISTS was answered with neither 0 nor 1")
                    found.append(said == 1)
        return found

    def call(self, *words: str | bytes | int, seconds: float) -> Reply:
        """Any command, for what is off the path of a page: it makes objects of the answer. An array
        that has an error in it raises `Refused`, too."""
        texts = [word if isinstance(word, bytes) else str(word).encode(errors="surrogateescape") for word in words]
        with self._exchange(seconds) as deadline:
            self._wire.send([_request(*texts)], deadline)
            return self._read_reply(deadline)

    @contextlib.contextmanager
    def _exchange(self, seconds: float, begun: object = None) -> Iterator[float]:
        """Requests and their answers; until when. After the last one nothing may be left."""
        if not self.is_open:
            raise OSError(errno.ENOTCONN, "the connection is closed")
        assert self._set is begun, "a set is under way"
        self._refusal = ""
        self._room_bytes = MAX_REPLY_BYTES
        try:
            yield time.monotonic() + seconds
            if not self._wire.is_drained:
                raise ProtocolError("more came than was asked for")
        except BaseException:
            self.close()
            raise
        if self._refusal:
            raise Refused(self._refusal)

    def _send_set(
        self, keys: Sequence[bytes], values: Sequence[Sequence[memoryview]], start: int, deadline: float
    ) -> int:
        """From `start` on, as much as may be in flight; returns where it ends."""
        lengths = [sum(map(len, value)) for value in values]
        stop = _part(start, lengths)
        parts: list[bytes | memoryview] = []
        end = b""
        for key, value, length in zip(keys[start:stop], values[start:stop], lengths[start:stop], strict=True):
            parts.append(b"%b*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (end, len(key), key, length))
            parts += value
            end = b"\r\n"
        parts.append(end)
        self._wire.send(parts, deadline)
        return stop

    def _read_line(self, deadline: float) -> bytes:
        """The next one; of an error the text is kept."""
        line = self._wire.read_line(deadline)
        if line[:1] == b"-":
            self._note_refusal(line)
        return line

    def _note_refusal(self, line: bytes) -> None:
        """If it is the first of this batch."""
        if not self._refusal:
            text = line[1:].decode(errors="backslashreplace")[:_MAX_TEXT]
            self._refusal = (text if text.isprintable() else ascii(text)) or "an error without a word"

    def _read_value(self, target: memoryview, deadline: float) -> bool:
        """False: it is not there, or something else is, which is none of ours."""
        line = self._wire.read_line(deadline)
        if line == b"$-1" or line.startswith(b"-WRONGTYPE "):
            return False
        if line[:1] == b"-":
            self._note_refusal(line)
            return False
        length = _number(line) if line[:1] == b"$" else -1
        if not 0 <= length <= MAX_REPLY_BYTES:
            raise ProtocolError(f"a value of {len(target)} bytes was expected, not {line[:20]!r}")
        self._wire.skip(max(length - len(target), 0), target, deadline)
        self._wire.read_value(target[:length], deadline)
        return length == len(target)

    def _read_status(self, deadline: float) -> str:
        """An answer to SET: "" or why not. That is no refusal of the whole batch."""
        line = self._read_line(deadline)
        text, self._refusal = self._refusal, ""
        if line != b"+OK" and not text:
            raise ProtocolError(f"SET was answered with {line[:20]!r}")
        return text

    def _read_reply(self, deadline: float, depth: int = 0) -> Reply:
        """An object of whatever comes; None for an error, which `_refusal` has."""
        line = self._read_line(deadline)
        kind = line[:1]
        self._take_room(len(line))
        if kind == b"+":
            return line[1:]
        if kind == b"-":
            return None
        if kind not in (b":", b"$", b"*"):
            raise ProtocolError(f"no answer begins with {line[:20]!r}")
        number = _number(line)
        if kind == b":":
            return number
        if number == -1:
            return None
        if kind == b"*":
            if depth == _MAX_DEPTH:
                raise ProtocolError("arrays in arrays")
            self._take_room(0, number)
            return [self._read_reply(deadline, depth + 1) for _ in range(number)]
        self._take_room(number)
        body = bytearray(number)
        self._wire.read_value(memoryview(body), deadline)
        return bytes(body)

    def _take_room(self, length_bytes: int, objects: int = 1) -> None:
        self._room_bytes -= length_bytes + objects * _OBJECT_BYTES
        if min(length_bytes, objects) < 0 or self._room_bytes < 0:
            raise ProtocolError(f"an answer of more than {MAX_REPLY_BYTES >> 20} MiB, or of less than nothing")


def _part(start: int, lengths: Sequence[int]) -> int:
    """Where what may be in flight at once ends; at least one, if there is one."""
    stop, total_bytes = start, 0
    while stop < min(len(lengths), start + MAX_IN_FLIGHT):
        total_bytes += lengths[stop]
        if total_bytes > MAX_IN_FLIGHT_BYTES and stop > start:
            break
        stop += 1
    return stop


def _request(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _number(line: bytes) -> int:
    """After the first byte. (Python's own idea of a number is a wide one.)"""
    digits = line[2:] if line[1:2] == b"-" else line[1:]
    if not digits.isdigit() or len(digits) > 19:
        raise ProtocolError(f"no number: {line[:20]!r}")
    return int(line[1:])
