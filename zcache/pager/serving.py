"""A region's faults and its client's requests, by one thread."""

import contextlib
import json
import os
import select
import socket
import time
from typing import Any, Final

from zcache.pager.messages import FORGET, FORGOTTEN
from zcache.pager.paged_region import CLIENT_HAS_ENDED, PagedRegion
from zcache.pager.spin import Spin
from zcache.store.store import Store

LOOK_SECONDS: Final = 1e-3


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

    def asked(self) -> list[list[str]] | None:
        """The requests of this era that wait, in words, the number first; None if it has gone. Who
        asks in another era is told which this is."""
        part = self.requests.recv(1 << 16)
        if not part:
            return None
        *lines, self._said = (self._said + part).split(b"\n")
        requests = [line.decode().split() for line in lines]
        now = [request[1:] for request in requests if request[0] == str(self.era)]
        if len(now) < len(requests):
            self.answer({"number": 0})
        return now


def serve(region: PagedRegion, store: Store, client: Client, descriptor: int) -> None:
    """Until the client has gone, however it does. Faults first; and requests, within a
    millisecond."""
    try:
        client.greet()
        _serve(region, store, client, descriptor)
    except (*CLIENT_HAS_ENDED, ConnectionError):
        return


def _serve(region: PagedRegion, store: Store, client: Client, descriptor: int) -> None:
    poll = select.poll()
    requests, forgetting = client.requests.fileno(), client.forgetting.fileno()
    for ready in (descriptor, requests, forgetting):
        poll.register(ready, select.POLLIN)
    spin, look = Spin(), 0.0
    while True:
        is_spinning = spin.goes_on()
        if is_spinning:
            spin.found(region.serve_faults())
            if time.monotonic() < look:
                continue
            look = time.monotonic() + LOOK_SECONDS
        poll.modify(requests, select.POLLIN | (select.POLLOUT if client.unsent else 0))
        for ready, events in poll.poll(0 if is_spinning else None):
            if ready == descriptor:
                spin.found(region.serve_faults())
            elif ready == forgetting:
                if not _forget(region, client):
                    poll.unregister(forgetting)
            elif not events & ~select.POLLOUT:
                client.send()
            else:
                asked = client.asked()
                if asked is None:
                    return
                for number, *request in asked:
                    client.answer({"number": int(number), **_answer(request, region, store)})


def _forget(region: PagedRegion, client: Client) -> bool:
    """Pages that somebody needs no more; False: there is nobody."""
    said = client.forgetting.recv(FORGET.size)
    if len(said) < FORGET.size:
        return False
    era, number, first, stop = FORGET.unpack(said)
    if era == client.era:
        region.forget(first, stop)
    else:
        number = 0
    client.forgetting.send(FORGOTTEN.pack(client.era, number))
    return True


def _answer(request: list[str], region: PagedRegion, store: Store) -> dict[str, Any]:
    match request:
        case ["will_need", first, stop]:
            region.will_need(int(first), int(stop))
        case ["forget", first, stop]:
            region.forget(int(first), int(stop))
        case ["status"]:
            return _status(region, store)
        case _:
            return {"refused": f"no such request: {' '.join(request)}"}
    return {}


def _status(region: PagedRegion, store: Store) -> dict[str, Any]:
    with store.lock:
        return {
            "pid": os.getpid(),
            "resident_pages": region.resident.count,
            "faults": region.faults,
            "lost_region_pages": region.lost_pages,
            "page_loop": store.loop.name,
            **store.statistics.as_dict(),
        }
