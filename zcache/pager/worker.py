"""`python -m zcache.pager.worker FD`: a pager. Serves regions over one store, for the keeper at
that socket, and goes on where another has died, by the keeper's image.

Each region has a thread that serves its faults, and one by which pages leave. If the keeper ends,
what there is goes on.
"""

import os
import signal
import socket
import sys
import threading
import traceback
from typing import Any, Final

from zcache.allocators.choice import ALLOCATORS, DEFAULT_ALLOCATOR
from zcache.errors import BadInput, ZcacheError
from zcache.hardening.own_thread import OwnThread
from zcache.pager import messages
from zcache.pager.messages import Packet
from zcache.pager.paged_region import PagedRegion
from zcache.pager.serving import Client, serve
from zcache.pages.entry import PAGE_BYTES
from zcache.pages.tmem import TmemObject
from zcache.server.assembly import make_store, open_image
from zcache.server.config import parse_config
from zcache.server.files import Files
from zcache.steps import Steps
from zcache.store.store import Store

#: Of a server's parameters, those that a region has.
PARAMETERS: Final = ("allocator", "backing", "budget", "codec", "encrypt", "force", "overcommit", "recompress")


class Worker:
    """Until the keeper and all regions have ended."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._speaking = threading.Lock()
        self._store: Store
        self._pages: TmemObject
        self._era = 0
        self._serving: list[OwnThread] = []

    def run(self) -> None:
        """All that the keeper says; and then what goes on without it."""
        while packet := messages.receive(self._channel):
            if packet.kind == "region":
                self._begin(packet)
            else:
                try:
                    self._make_store(packet)
                except ZcacheError as refusal:
                    self._say("refused", why=str(refusal))
                    return
        for thread in self._serving:
            thread.join()
        self._store.close()

    def _say(self, kind: str, *, descriptors: tuple[int, ...] = (), **words: Any) -> None:
        with self._speaking:
            try:
                messages.send(self._channel, Packet(kind, words, descriptors))
            except OSError:  # there is no keeper any more
                return

    def _make_store(self, packet: Packet) -> None:
        image, *given = packet.descriptors
        self._era = packet.words["era"]
        words = store_words(packet.words["size"], packet.words["parameters"]) | {"image": str(image)}
        config = parse_config(words.items())
        steps = Steps.from_environment()
        files = Files(config, steps, say)
        is_first = not config.is_succession
        try:
            if is_first:
                files.open()
            else:
                files.adopt(image, given)
            made = open_image(config, files.tier)
            self._store, self._pages = make_store(config, files.tier, made, steps, lambda: None, lambda _: None)
            self._store.reclaimer.start()
        except BaseException:
            for step in files.undo() if is_first else ():
                step()
            raise
        if is_first:
            self._say("files", descriptors=tuple(files.descriptors()))
        self._say("serves")

    def _begin(self, packet: Packet) -> None:
        words = packet.words
        number: int = words["number"]
        client, descriptor, memfd, forgetting, _ = packet.descriptors  # the last one shows that we are there
        region = PagedRegion(
            self._store,
            self._pages,
            words["pid"],
            descriptor,
            memfd,
            words["start"],
            words["limit"] // PAGE_BYTES,
            lambda page: self._say("sigbus", number=number, page=page),
        )

        def work() -> None:
            try:
                region.take_over(words["refused"])
                region.start()
                with socket.socket(fileno=client) as ours, socket.socket(fileno=forgetting) as theirs:
                    serve(region, self._store, Client(ours, theirs, self._era), descriptor)
                    region.close()
            except BaseException:
                traceback.print_exc()
                os._exit(1)  # nobody would serve it any more; the next pager will
            self._store.flush(self._pages, 0, region.resident.page_count)
            self._say("ended", number=number)

        thread = OwnThread("zcache-region", work)
        self._serving.append(thread)
        thread.start()


def store_words(size_bytes: int, parameters: dict[str, str]) -> dict[str, str]:
    """What a server would be told: with a budget for all pages, even if none compresses, of memory
    that is taken as it is needed; with a backing, a quarter of that."""
    for key, value in parameters.items():
        if key not in PARAMETERS:
            raise BadInput(f"{key}={value}: unknown parameter; give {', '.join(PARAMETERS)}")
    chosen = ALLOCATORS.get(parameters.get("allocator", ""), ALLOCATORS[DEFAULT_ALLOCATOR])
    most_frames = chosen.frames_for(size_bytes // PAGE_BYTES) // (4 if parameters.get("backing") else 1)
    budget_bytes = max(most_frames, chosen.min_budget_frames) * chosen.frame_bytes
    return {"size": str(size_bytes), "budget": str(budget_bytes), **parameters}


def say(line: str) -> None:
    """In the log, which is the client's standard error."""
    print(f"zcache: {line}", file=sys.stderr, flush=True)


def main(descriptor: int) -> None:
    """Until the keeper says so by closing its end, and all clients have gone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as channel:
        Worker(channel).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
