"""A region's faults and its client's requests, by one thread."""

import contextlib
import json
import os
import re
import select
import socket
import time
import weakref
from typing import Any, Final, NamedTuple

from zcache.control.check import check
from zcache.errors import BadInput, ZcacheError
from zcache.hardening.log_pipe import say
from zcache.hardening.own_thread import OwnThread
from zcache.pager.messages import FORGET, FORGOTTEN
from zcache.pager.paged_region import PagedRegion
from zcache.pager.region_memory import CLIENT_HAS_ENDED
from zcache.pager.spin import Spin
from zcache.pages.entry import PAGE_BYTES
from zcache.store.store import Store

LOOK_SECONDS: Final = 1e-3
#: Between two tries to serve faults for which there was no room.
RETRY_MS: Final = 20


#: Of a request, and of answers that nobody reads, at most.
LINE_BYTES: Final = 256
UNSENT_BYTES: Final = 1 << 20
_REQUEST: Final = re.compile(rb"([0-9]{1,18}) ([0-9]{1,18}) ([a-z_]{1,20})(?: ([0-9]{1,18}) ([0-9]{1,18}))?")


class Request(NamedTuple):
    """Its number, and what is asked: of the pages from `first` to `stop`, if it is of any."""

    number: int
    word: str
    first: int
    stop: int


class Client:
    """Its two sockets, in an era (`zcache.pager.messages`). Nothing here waits for it: it may not
    listen, and have a thread that waits for a page."""

    def __init__(self, requests: socket.socket, forgetting: socket.socket, era: int) -> None:
        self.requests, self.forgetting, self.era = requests, forgetting, era
        self._said = b""
        self.unsent = b""

    def greet(self) -> None:
        """Say the era. Who does not hear it, with the words of so many eras before it unread, is
        not waiting, and is told when it asks."""
        self.unsent = b"\n"  # the end of what a pager was saying when it died
        self.answer({"number": 0})
        with contextlib.suppress(BlockingIOError):
            self.forgetting.send(FORGOTTEN.pack(self.era, 0), socket.MSG_DONTWAIT)

    def answer(self, words: dict[str, Any]) -> None:
        """A line; what of it has no room now is `unsent`."""
        self.unsent += json.dumps({"era": self.era, **words}).encode() + b"\n"
        self.send()

    def send(self) -> None:
        """What is unsent, as far as there is room."""
        with contextlib.suppress(BlockingIOError):
            self.unsent = self.unsent[self.requests.send(self.unsent, socket.MSG_DONTWAIT) :]

    def asked(self) -> list[Request] | None:
        """The requests of this era that wait; None if it has gone. Who asks in another era is told
        which this is. Raises `BadInput` for what no client of ours says."""
        part = self.requests.recv(1 << 16)
        if not part:
            return None
        *lines, self._said = (self._said + part).split(b"\n")
        if max(map(len, (*lines, self._said))) > LINE_BYTES or len(self.unsent) > UNSENT_BYTES:
            raise BadInput("a client's requests are too long, or it does not read the answers")
        said = [_parse(line) for line in lines]
        now = [request for era, request in said if era == self.era]
        if len(now) < len(said):
            self.answer({"number": 0})
        return now


def _parse(line: bytes) -> tuple[int, Request]:
    """The era, and what is asked."""
    match = _REQUEST.fullmatch(line)
    if not match:
        raise BadInput(f"a client asks {line!r}")
    era, number, word, first, stop = match.groups(b"0")
    return int(era), Request(int(number), word.decode(), int(first), int(stop))


class Audits:
    """Walks over the store's books, each by a thread of its own: faults are served meanwhile.
    `fileno` is ready when one has ended."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._done: list[tuple[int, dict[str, Any]]] = []
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._ready)  # when the last of them has ended, too

    def fileno(self) -> int:
        """For poll(2)."""
        return self._ready

    def start(self, number: int, found: dict[str, int]) -> None:
        """For the request of that number; what was found before."""

        def walk() -> None:
            try:
                words: dict[str, Any] = {"balanced": True, **check(self._store), **found}
            except (ZcacheError, MemoryError) as error:
                words = {"balanced": False, "imbalance": str(error)}
            self._done.append((number, words))
            os.eventfd_write(self._ready, 1)

        OwnThread("zcache-audit", walk).start()

    def ended(self) -> list[tuple[int, dict[str, Any]]]:
        """Those that have, with what they found."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._ready)
        done, self._done[:] = list(self._done), []
        return done


def serve(region: PagedRegion, store: Store, client: Client) -> None:
    """Until the client has gone, however it does. Faults first; and requests, within a
    millisecond."""
    audits = Audits(store)
    try:
        client.greet()
        _serve(region, store, client, audits)
    except (*CLIENT_HAS_ENDED, ConnectionError):
        return
    except BadInput as error:
        say(f"zcache: {error}: it is served no more")


def _serve(region: PagedRegion, store: Store, client: Client, audits: Audits) -> None:
    poll = select.poll()
    requests, forgetting = client.requests.fileno(), client.forgetting.fileno()
    for ready in (region.fileno(), requests, forgetting, audits.fileno()):
        poll.register(ready, select.POLLIN)
    spin, look = Spin(), 0.0
    while True:
        count = region.serve_faults(spin.seconds)
        spin.found(count)
        if count and time.monotonic() < look:
            continue
        look = time.monotonic() + LOOK_SECONDS
        if region.has_waiting:
            region.retry()
        poll.modify(requests, select.POLLIN | (select.POLLOUT if client.unsent else 0))
        for ready, events in poll.poll(0 if count else RETRY_MS if region.has_waiting else None):
            if ready == region.fileno():
                continue  # next
            if ready == audits.fileno():
                for number, found in audits.ended():
                    client.answer({"number": number, **found})
            elif ready == forgetting:
                if not _forget(region, client):
                    poll.unregister(forgetting)
            elif not events & ~select.POLLOUT:
                client.send()
            else:
                asked = client.asked()
                if asked is None:
                    return
                for request in asked:
                    if request.word == "check":
                        _check(region, client, audits, request.number)
                    else:
                        client.answer({"number": request.number, **_answer(request, region, store)})


def _check(region: PagedRegion, client: Client, audits: Audits, number: int) -> None:
    try:
        audits.start(number, {"removed_pages": region.check()})
    except ZcacheError as error:
        client.answer({"number": number, "balanced": False, "imbalance": str(error)})


def _forget(region: PagedRegion, client: Client) -> bool:
    """Pages that somebody needs no more; False: there is nobody."""
    said = client.forgetting.recv(FORGET.size)
    if len(said) < FORGET.size:
        return False
    era, number, first, stop = FORGET.unpack(said)
    if era == client.era:
        region.forget(*_range(first, stop, region))
    else:
        number = 0
    try:
        client.forgetting.send(FORGOTTEN.pack(client.era, number), socket.MSG_DONTWAIT)
    except BlockingIOError:
        raise BadInput("a client does not read that its pages are forgotten") from None
    return True


def _range(first: int, stop: int, region: PagedRegion) -> tuple[int, int]:
    """Pages that there are, whatever the client says: others are another's."""
    stop = min(stop, region.resident.page_count)
    return min(first, stop), stop


def _answer(request: Request, region: PagedRegion, store: Store) -> dict[str, Any]:
    match request.word:
        case "will_need":
            region.will_need(*_range(request.first, request.stop, region))
        case "forget":
            region.forget(*_range(request.first, request.stop, region))
        case "status":
            with store.lock:
                figures = store.statistics.as_dict()
            return {"pid": os.getpid(), "page_loop": store.loop.name, **figures, **region_status(region)}
        case _:
            return {"refused": f"no such request: {request.word}"}
    return {}


def region_status(region: PagedRegion) -> dict[str, Any]:
    """What there is to be said of a region by itself."""
    return {
        "client_pid": region.client,
        "region_bytes": region.resident.page_count * PAGE_BYTES,
        "limit_bytes": region.limit_pages * PAGE_BYTES,
        "resident_pages": region.resident.count,
        "stored_region_pages": region.stored.count(),
        "faults": region.faults,
        "fault_p50_us": region.latencies.percentile_us(50),
        "fault_p99_us": region.latencies.percentile_us(99),
        "lost_region_pages": region.lost_pages,
    }
