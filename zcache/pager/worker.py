"""`python -m zcache.pager.worker FD`: a pager. Serves regions over one store, for the keeper at
that socket, and goes on where another has died, by the keeper's image.

Each region has a thread that serves its faults, and one by which pages leave. If the keeper ends,
what there is goes on.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Final

from zcache.control.listener import ControlSocket
from zcache.control.status import gather_status
from zcache.errors import BadInput, EnvironmentProblem, ZcacheError
from zcache.hardening.log_pipe import say
from zcache.hardening.own_thread import OwnThread
from zcache.pager import messages
from zcache.pager.messages import Packet
from zcache.pager.paged_region import PagedRegion
from zcache.pager.parameters import store_words
from zcache.pager.region_memory import RegionMemory
from zcache.pager.serving import Client, region_status, serve
from zcache.pager.stored_pages import StoredPages
from zcache.pager.thrift import give_back
from zcache.pages.entry import PAGE_SHIFT
from zcache.pages.tmem import TmemObject
from zcache.server.assembly import make_store, open_image
from zcache.server.config import parse_config
from zcache.server.files import Files
from zcache.server.upkeep import Upkeep
from zcache.steps import Steps
from zcache.store.store import Store

TIDY_SECONDS: Final = 0.1
GIVE_BACK_SECONDS: Final = 0.5


class Worker:
    """Until the keeper and all regions have ended."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._speaking = threading.Lock()
        self._store: Store
        self._pages: TmemObject
        self._control: ControlSocket | None = None
        self._upkeep: list[Upkeep]
        self._era = 0
        self._refused: dict[int, list[int]] = {}  # pages of regions that are still to come
        self._regions: dict[int, PagedRegion] = {}
        self._past_faults = 0  # of those that have ended
        self._serving: dict[int, OwnThread] = {}

    def run(self) -> None:
        """All that the keeper says; and then what goes on without it."""
        while packet := messages.receive(self._channel):
            match packet.kind:
                case "refused_pages":
                    self._refused.setdefault(packet.words["number"], []).extend(packet.words["pages"])
                case "region":
                    self._begin(packet)
                case "store":
                    try:
                        self._make_store(packet)
                    except (ZcacheError, OSError) as refusal:
                        if packet.words["era"]:  # what stands against it may pass
                            sys.exit(f"zcache: the next pager cannot begin: {refusal}")
                        self._say("refused", why=str(refusal))
                        return
        for thread in list(self._serving.values()):
            thread.join()
        if self._control:
            self._control.close()
        for upkeep in self._upkeep:
            upkeep.stop()
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
            made = open_image(config, files.backing)
            assert made
            tiers = [files.backing] if files.backing else []
            self._store, self._pages = make_store(config, tiers, made, made.secret, steps, lambda: None, lambda _: None)
            self._store.reclaimer.start()
            self._upkeep = [
                # Light frames are packed while there is time to spare, not only when there is no
                # room: what is free then is given back.
                Upkeep("zcache-tidy", self._store.reclaimer.tidy_up, seconds=TIDY_SECONDS),
                Upkeep("zcache-thrift", lambda: give_back(self._store), seconds=GIVE_BACK_SECONDS),
            ]
            for upkeep in self._upkeep:
                upkeep.start()
            self._listen(config.control, is_first)
        except BaseException:
            for step in files.undo() if is_first else ():
                step()
            raise
        if is_first:
            self._say("files", descriptors=tuple(files.descriptors()))
        self._say("serves")

    def _listen(self, path: Path | None, is_first: bool) -> None:
        """At the control socket, if there is to be one. A successor goes on without, rather than
        not at all."""
        if not path:
            return
        try:
            self._control = ControlSocket(path)
        except BadInput as refusal:
            if is_first:
                raise
            say(f"zcache: no `zcache status` any more: {refusal}")
            return
        self._control.start(self._store, self._status, None)

    def _status(self) -> dict[str, Any]:
        regions = [region_status(region) for region in list(self._regions.values())]
        faults = self._past_faults + sum(region["faults"] for region in regions)
        troubles = [region.trouble for region in list(self._regions.values()) if region.trouble]
        around = {"regions": regions, "region_faults": faults}
        return gather_status(self._store, self._pages, {}, self._era + 1, troubles, around)

    def _begin(self, packet: Packet) -> None:
        words = packet.words
        number, page_count = words["number"], words["size"] >> PAGE_SHIFT
        client, descriptor, memfd, forgetting, life = packet.descriptors  # the last one shows that we are there
        os.set_blocking(descriptor, False)
        requests, pages_to_forget = socket.socket(fileno=client), socket.socket(fileno=forgetting)

        def failed(error: Exception) -> None:
            say(f"zcache: a region of process {words['pid']} cannot be served any more: {error}")
            with contextlib.suppress(OSError):  # it has gone
                requests.shutdown(socket.SHUT_RD)

        def end() -> None:
            requests.close()
            pages_to_forget.close()
            for mine in (descriptor, memfd, life):
                os.close(mine)
            self._say("ended", number=number)

        def work() -> None:
            try:
                try:
                    region.take_over(refused)
                    region.start()
                    serve(region, self._store, Client(requests, pages_to_forget, self._era))
                except (OSError, EnvironmentProblem) as error:
                    failed(error)
                region.close()
                region.stored.flush(0, page_count)
            except BaseException:
                traceback.print_exc()
                os._exit(1)  # nobody would serve it any more; the next pager will
            self._past_faults += region.faults
            del self._regions[number], self._serving[number]
            end()

        refused = self._refused.pop(number, [])
        try:
            region = PagedRegion(
                RegionMemory(descriptor, memfd, words["start"], page_count),
                StoredPages(self._store, self._pages, words["first"], page_count),
                words["pid"],
                words["limit"] >> PAGE_SHIFT,
                lambda page: self._say("sigbus", number=number, page=page),
                failed,
            )
            self._regions[number], self._serving[number] = region, OwnThread("zcache-region", work)
            self._serving[number].start()
        except (EnvironmentProblem, OSError, MemoryError) as error:  # the others go on
            self._regions.pop(number, None)
            self._serving.pop(number, None)
            say(f"zcache: a region of process {words['pid']} cannot be served: {error}")
            line = json.dumps({"refused": f"the pager has no room for a region: {error}"}).encode() + b"\n"
            with contextlib.suppress(OSError):  # it has gone, or does not read
                requests.send(line, socket.MSG_DONTWAIT)
            end()


def main(descriptor: int) -> None:
    """Until the keeper says so by closing its end, and all clients have gone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as channel:
        Worker(channel).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
