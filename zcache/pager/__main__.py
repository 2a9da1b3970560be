"""`python -m zcache.pager FD`: the pager of one region, whose client is at that socket."""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, Final

from zcache.allocators.choice import ALLOCATORS, DEFAULT_ALLOCATOR
from zcache.errors import BadInput, ZcacheError
from zcache.pager.paged_region import PagedRegion
from zcache.pages.entry import PAGE_BYTES
from zcache.server.assembly import make_store
from zcache.server.config import parse_config
from zcache.server.files import Files
from zcache.steps import Steps
from zcache.store.store import Store

#: Numbers of pages: the first, and the one behind the last.
PAGES: Final = struct.Struct("=QQ")
LOOK_SECONDS: Final = 1e-3
MAX_SPIN_SECONDS: Final = 100e-6
MIN_SPIN_SECONDS: Final = 2e-6
#: Of a server's parameters, those that a region has.
PARAMETERS: Final = ("allocator", "backing", "budget", "codec", "encrypt", "force", "overcommit", "recompress")


class Spin:
    """Whether to look for the next fault before going to sleep: for a short time after one, as long
    as that pays. Waking up takes longer than most waits between two faults of a thread that goes
    through its memory."""

    def __init__(self) -> None:
        self._until = 0.0
        self._seconds = MAX_SPIN_SECONDS

    def goes_on(self) -> bool:
        """Look once more."""
        if time.monotonic() < self._until:
            return True
        if self._until:  # nothing came: for a shorter time after the next one
            self._seconds = max(self._seconds / 2, MIN_SPIN_SECONDS)
            self._until = 0.0
        return False

    def found(self, faults: int) -> None:
        """So many faults were served."""
        if faults:
            if self._until:
                self._seconds = min(self._seconds * 2, MAX_SPIN_SECONDS)
            self._until = time.monotonic() + self._seconds


def main(descriptor: int) -> None:
    """Until the client has gone. What is meant for the client, or for all programs at once, does
    not end its pager before it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    client = socket.socket(fileno=descriptor)
    said, descriptors, _, _ = socket.recv_fds(client, 1 << 16, 3)
    if not said:
        return
    asked = json.loads(said)
    uffd, memfd, forgetting = descriptors
    with contextlib.suppress(ConnectionError):  # the client ends, however it does
        try:
            region, store = _make(asked, uffd, memfd)
        except ZcacheError as refusal:
            client.sendall(json.dumps({"refused": str(refusal)}).encode() + b"\n")
            return
        store.reclaimer.start()
        region.start()
        client.sendall(b'{"number": 0}\n')
        _serve(region, store, client, uffd, forgetting)
        region.close()
        store.close()


def _serve(region: PagedRegion, store: Store, client: socket.socket, uffd: int, forgetting: int) -> None:
    """Faults first; and the client's requests, within a millisecond."""
    poll = select.poll()
    for descriptor in (uffd, client.fileno(), forgetting):
        poll.register(descriptor, select.POLLIN)
    spin, said, look = Spin(), b"", 0.0
    while True:
        is_spinning = spin.goes_on()
        if is_spinning:
            spin.found(region.serve_faults())
            if time.monotonic() < look:
                continue
            look = time.monotonic() + LOOK_SECONDS
        for ready, _ in poll.poll(0 if is_spinning else None):
            if ready == uffd:
                spin.found(region.serve_faults())
            elif ready == forgetting:
                if not _forget(region, forgetting):
                    poll.unregister(forgetting)
            else:
                part = client.recv(1 << 16)
                if not part:
                    return
                *lines, said = (said + part).split(b"\n")
                for line in lines:
                    client.sendall(json.dumps(_answer(line.decode().split(), region, store)).encode() + b"\n")


def _make(asked: dict[str, Any], uffd: int, memfd: int) -> tuple[PagedRegion, Store]:
    parameters: dict[str, str] = asked["parameters"]
    for key, value in parameters.items():
        if key not in PARAMETERS:
            raise BadInput(f"{key}={value}: unknown parameter; give {', '.join(PARAMETERS)}")
    chosen = ALLOCATORS.get(parameters.get("allocator", ""), ALLOCATORS[DEFAULT_ALLOCATOR])
    page_count = asked["size"] // PAGE_BYTES
    # For all pages, even if none compresses, of memory that is taken as it is needed; with a
    # backing, a quarter of that.
    most_frames = chosen.frames_for(page_count) // (4 if parameters.get("backing") else 1)
    budget_bytes = max(most_frames, chosen.min_budget_frames) * chosen.frame_bytes
    words = {"size": str(asked["size"]), "budget": str(budget_bytes), **parameters}
    config = parse_config(words.items())
    steps = Steps.from_environment()
    files = Files(config, steps, _say)
    files.open()
    store, pages = make_store(config, files.tier, None, steps, lambda: None, _say)
    return PagedRegion(store, pages, asked["pid"], uffd, memfd, asked["start"], asked["limit"] // PAGE_BYTES), store


def _forget(region: PagedRegion, forgetting: int) -> bool:
    """Pages that somebody at that socket needs no more; False: there is nobody."""
    said = os.read(forgetting, PAGES.size)
    if len(said) < PAGES.size:
        return False
    region.forget(*PAGES.unpack(said))
    os.write(forgetting, b"\0")
    return True


def _answer(words: list[str], region: PagedRegion, store: Store) -> dict[str, Any]:
    number, *request = words
    answer: dict[str, Any] = {"number": int(number)}
    match request:
        case ["will_need", first, stop]:
            region.will_need(int(first), int(stop))
        case ["forget", first, stop]:
            region.forget(int(first), int(stop))
        case ["status"]:
            answer |= _status(region, store)
        case _:
            answer["refused"] = f"no such request: {' '.join(request)}"
    return answer


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


def _say(line: str) -> None:
    print(f"zcache: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
