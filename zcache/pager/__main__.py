"""`python -m zcache.pager FD`: the pager of one region, whose client is at that socket."""

import json
import os
import select
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
    """Until the client has gone."""
    client = socket.socket(fileno=descriptor)
    said, descriptors, _, _ = socket.recv_fds(client, 1 << 16, 3)
    if not said:
        return
    asked = json.loads(said)
    uffd, memfd, forgetting = descriptors
    try:
        region, store = _make(asked, uffd, memfd)
    except ZcacheError as refusal:
        client.sendall(json.dumps({"refused": str(refusal)}).encode() + b"\n")
        return
    store.reclaimer.start()
    region.start()
    client.sendall(b"{}\n")
    poll = select.poll()
    poll.register(uffd, select.POLLIN)
    poll.register(client.fileno(), select.POLLIN)
    poll.register(forgetting, select.POLLIN)
    spin = Spin()
    while True:
        if spin.goes_on():
            spin.found(region.serve_faults())
            continue
        for ready, _ in poll.poll():
            if ready == uffd:
                spin.found(region.serve_faults())
            elif ready == forgetting:
                if not _forget(region, forgetting):
                    poll.unregister(forgetting)
            elif request := client.recv(4096):
                client.sendall(json.dumps(_answer(request.decode().split(), region, store)).encode() + b"\n")
            else:
                region.close()
                store.close()
                return


def _make(asked: dict[str, Any], uffd: int, memfd: int) -> tuple[PagedRegion, Store]:
    parameters: dict[str, str] = asked["parameters"]
    for key, value in parameters.items():
        if key not in PARAMETERS:
            raise BadInput(f"{key}={value}: unknown parameter; give {', '.join(PARAMETERS)}")
    chosen = ALLOCATORS.get(parameters.get("allocator", ""), ALLOCATORS[DEFAULT_ALLOCATOR])
    page_count = asked["size"] // PAGE_BYTES
    # For all pages, even if none compresses: of memory that is taken as it is needed.
    most_frames = max(chosen.frames_for(page_count), chosen.min_budget_frames)
    words = {"size": str(asked["size"]), "budget": str(most_frames * chosen.frame_bytes), **parameters}
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
    match words:
        case ["will_need", first, stop]:
            region.will_need(int(first), int(stop))
        case ["forget", first, stop]:
            region.forget(int(first), int(stop))
        case _:
            return _status(region, store)
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


def _say(line: str) -> None:
    print(f"zcache: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
