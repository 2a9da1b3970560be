"""The keeper: holds what must outlive a pager, and replaces one that has died.

That is the store's image and what is open below it; and of each region the memory's file, its
userfaultfd, and the ends of the client's sockets. A userfaultfd that nobody has open any more lets
all who wait for pages go on, with zeros; so client and keeper each have it. All that a client sees
of a pager's death is a fault that takes longer.

It is small, and does nothing else: what might fail is done in the pager.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from zcache.errors import BadInput
from zcache.hardening.log_pipe import say
from zcache.image import image
from zcache.pager import messages
from zcache.pager.entrance import REGIONS_DESCRIPTORS, Entrance, Newcomer
from zcache.pager.extents import Extents
from zcache.pager.messages import Packet
from zcache.pager.region_file import LEAST_LIMIT_BYTES, check_descriptors
from zcache.pages.entry import PAGE_BYTES

#: The command of a pager, but for its channel.
PAGER: list[str] = [sys.executable, "-P", "-m", "zcache.pager.worker"]
#: So many pagers, one after the other, that end before they serve, or by themselves soon after:
#: none will do. (One that serves, and is killed, says nothing of the next.)
HOPELESS: Final = 5
SOON_SECONDS: Final = 5.0
#: Before another is started where one could not be.
REST_SECONDS: Final = 0.2
#: Each takes five descriptors here, and six and two threads in the pager.
MAX_REGIONS: Final = 100
#: Numbers of pages that fit in a packet.
PACKET_PAGES: Final = 4000


@dataclass
class HeldRegion:
    """What the client has said of it, its descriptors (the client's socket first), and the pages
    that are SIGBUS."""

    words: dict[str, Any]
    descriptors: list[int]
    refused: list[int] = field(default_factory=list)


class Keeper:
    """Of a store for `size_bytes`, by `parameters`. With an entrance, more regions come in, and it
    goes on until it is asked to end; without, until there are none left. `on_serving` is called
    once, when the first pager serves."""

    def __init__(self, size_bytes: int, parameters: dict[str, str], entrance: Entrance | None = None) -> None:
        self._store = {"size": size_bytes, "parameters": parameters}
        self._entrance = entrance
        self.on_serving: Callable[[], None] = lambda: None
        self._image = image.new_descriptor()
        self._files: list[int] = []
        self._regions: dict[int, HeldRegion] = {}
        self._extents = Extents(size_bytes // PAGE_BYTES)
        self._last = 0
        self._era = -1
        self._failures = 0
        self._serves_since: float | None = None
        self._ending = os.eventfd(0, os.EFD_CLOEXEC)
        self._is_given_up = False
        self._pager: subprocess.Popen[bytes]
        self._channel: socket.socket

    @property
    def region_count(self) -> int:
        """How many there are."""
        return len(self._regions)

    def add(self, newcomer: Newcomer) -> int:
        """A region, which the next pager will serve; its number. Raises `BadInput`, and then has
        taken nothing."""
        words = _checked(newcomer)
        if len(self._regions) >= MAX_REGIONS:
            raise BadInput(f"there are {MAX_REGIONS} regions already; start another pager")
        words["first"] = self._extents.take(words["size"] // PAGE_BYTES)
        self._last += 1
        self._regions[self._last] = HeldRegion(words, newcomer.descriptors)
        return self._last

    def run(self) -> str:
        """Until there is nothing left to do: ""; or why there can be no pager. What is left of
        clients gets SIGBUS then."""
        try:
            return self._run()
        finally:
            if self._entrance:
                self._entrance.close()
            for region in self._regions.values():
                for descriptor in region.descriptors:
                    os.close(descriptor)
            self._regions.clear()

    def _run(self) -> str:
        while True:
            try:
                self._start()
            except OSError as error:  # no memory, say, after what has just ended the last one
                how, has_failed = f"cannot be started: {error.strerror}", True
                time.sleep(REST_SECONDS)
            else:
                why = self._attend()
                status = self._pager.wait()
                self._channel.close()
                if why or self._is_given_up or not (self._regions or self._entrance):
                    return why
                since = self._serves_since
                how = f"has died (status {status})"
                has_failed = since is None or (status >= 0 and time.monotonic() < since + SOON_SECONDS)
            self._failures = self._failures + 1 if has_failed else 0
            if self._failures >= HOPELESS:
                return f"{HOPELESS} times in a row a pager has ended at once; the last one {how}"
            say(f"zcache: the pager {how}: the next one goes on")

    def ask_to_end(self) -> None:
        """Let nobody in any more, and end with the last region; or at once, if it was asked before:
        then what is left of clients gets SIGBUS. For a signal's handler."""
        os.eventfd_write(self._ending, 1)

    def _end(self) -> None:
        if self._entrance:
            self._entrance.close()
            self._entrance = None
            self._end_with_the_last()
        else:
            self._is_given_up = True
            self._pager.kill()

    def _start(self) -> None:
        """The next pager, which is told all that there is."""
        self._era += 1
        self._serves_since = None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [*PAGER, str(theirs.fileno())]
            try:
                self._pager = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            except OSError:
                self._channel.close()
                raise
        self._say(Packet("store", {**self._store, "era": self._era}, [self._image, *self._files]))
        for number in self._regions:
            self._hand_over(number)
        self._end_with_the_last()

    def _say(self, packet: Packet) -> None:
        with contextlib.suppress(OSError):  # it has died already, and the next one is told
            messages.send(self._channel, packet)

    def _hand_over(self, number: int) -> None:
        region = self._regions[number]
        for begin in range(0, len(region.refused), PACKET_PAGES):
            pages = region.refused[begin : begin + PACKET_PAGES]
            self._say(Packet("refused_pages", {"number": number, "pages": pages}))
        self._say(Packet("region", {**region.words, "number": number}, region.descriptors))

    def _attend(self) -> str:
        """Until the pager has ended: ""; or why there can be none."""
        while True:
            poll = select.poll()
            poll.register(self._channel, select.POLLIN)
            poll.register(self._ending, select.POLLIN)
            rest = self._entrance.register(poll) if self._entrance else None
            ready = {descriptor for descriptor, _ in poll.poll(None if rest is None else rest * 1000 + 1)}
            if self._channel.fileno() in ready:
                packet = messages.receive(self._channel)
                if packet is None:
                    return ""
                if packet.kind == "refused":
                    return str(packet.words["why"])
                self._take(packet)
            for _ in range(os.eventfd_read(self._ending) if self._ending in ready else 0):
                self._end()
            for newcomer in self._entrance.newcomers(ready) if self._entrance else ():
                self._let_in(newcomer)

    def _let_in(self, newcomer: Newcomer) -> None:
        try:
            number = self.add(newcomer)
        except BadInput as refusal:
            with contextlib.suppress(OSError):  # it does not listen
                os.write(newcomer.descriptors[0], json.dumps({"refused": str(refusal)}).encode() + b"\n")
            for descriptor in newcomer.descriptors:
                os.close(descriptor)
        else:
            self._hand_over(number)

    def _take(self, packet: Packet) -> None:
        """What the pager says."""
        match packet.kind:
            case "serves":
                self._serves_since = time.monotonic()
                self.on_serving()
                self.on_serving = lambda: None
            case "files":
                self._files = list(packet.descriptors)
            case "sigbus":
                self._regions[packet.words["number"]].refused.append(packet.words["page"])
            case "ended":
                region = self._regions.pop(packet.words["number"])
                self._extents.give(region.words["first"])
                for descriptor in region.descriptors:
                    os.close(descriptor)
                self._end_with_the_last()

    def _end_with_the_last(self) -> None:
        """Have the pager end, if no region is left, and none can come."""
        if not self._regions and not self._entrance:
            with contextlib.suppress(OSError):  # it has already
                self._channel.shutdown(socket.SHUT_WR)


def _checked(newcomer: Newcomer) -> dict[str, Any]:
    """What is true of what it says. Raises `BadInput`."""
    said = newcomer.words
    names = ("start", "size", "limit")
    if not isinstance(said, dict) or any(type(said.get(name)) is not int for name in names):
        raise BadInput("a client says where its region is, how long, and its limit; zcache.Region does")
    words: dict[str, Any] = {name: said[name] for name in names} | {"pid": newcomer.pid}
    if any(words[name] <= 0 or words[name] % PAGE_BYTES or words[name] >= 1 << 63 for name in names):
        raise BadInput(f"a region of size={words['size']} at {words['start']}: give whole pages")
    if not LEAST_LIMIT_BYTES <= words["limit"] < words["size"]:
        raise BadInput(f"resident_limit={words['limit']}: give at least 1M, and less than size={words['size']}")
    _, descriptor, memfd, forgetting, _ = newcomer.descriptors
    check_descriptors(descriptor, memfd, forgetting, words["size"])
    return words


def main(descriptor: int) -> None:
    """For one region, whose client is at that socket; until the client has gone. What is meant for
    the client, or for all programs at once, does not end its pager before it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    client = socket.socket(fileno=descriptor)
    flags = socket.MSG_CMSG_CLOEXEC
    said, descriptors, _, _ = socket.recv_fds(client, messages.MAX_PACKET_BYTES, REGIONS_DESCRIPTORS, flags)
    if not said:
        return
    words = json.loads(said)
    keeper = Keeper(words["size"], words.pop("parameters"))
    keeper.add(Newcomer(words["pid"], words, [os.dup(descriptor), *descriptors]))
    has_served = threading.Event()
    keeper.on_serving = has_served.set
    why = keeper.run()
    if why:
        if has_served.is_set():  # its client is being ended, and hears nothing any more
            say(f"zcache: {why}")
        with contextlib.suppress(OSError):
            client.sendall(json.dumps({"refused": why}).encode() + b"\n")
