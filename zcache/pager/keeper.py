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
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from zcache.image import image
from zcache.pager import messages
from zcache.pager.messages import Packet

#: The command of a pager, but for its channel.
PAGER: list[str] = [sys.executable, "-P", "-m", "zcache.pager.worker"]
#: So many pagers, one after the other, that end before they serve, or by themselves soon after:
#: none will do. (One that serves, and is killed, says nothing of the next.)
HOPELESS: Final = 5
SOON_SECONDS: Final = 5.0
#: What a client gives of its region: its userfaultfd, the memory's file, and the ends of two
#: sockets: where pages are forgotten, and the one that says whether anybody is there.
REGIONS_DESCRIPTORS: Final = 4


@dataclass
class HeldRegion:
    """What the client has said of it, its descriptors (the client's socket first), and the pages
    that are SIGBUS."""

    words: dict[str, Any]
    descriptors: list[int]
    refused: list[int] = field(default_factory=list)


class Keeper:
    """Of a store for `size_bytes`, by `parameters`."""

    def __init__(self, size_bytes: int, parameters: dict[str, str]) -> None:
        self._store = {"size": size_bytes, "parameters": parameters}
        self._image = image.new_descriptor()
        self._files: list[int] = []
        self._regions: dict[int, HeldRegion] = {}
        self._era = -1
        self._failures = 0
        self._serves_since: float | None = None
        self._pager: subprocess.Popen[bytes]
        self._channel: socket.socket

    def add(self, words: dict[str, Any], descriptors: list[int]) -> None:
        """A region, which the next pager will serve."""
        number = max(self._regions, default=0) + 1
        self._regions[number] = HeldRegion(words, descriptors)

    def run(self) -> str:
        """Until there are no regions left: ""; or why there can be no pager."""
        while True:
            self._start()
            while packet := messages.receive(self._channel):
                if packet.kind == "refused":
                    self._pager.wait()
                    return str(packet.words["why"])
                self._take(packet)
            status = self._pager.wait()
            self._channel.close()
            if not self._regions:
                return ""
            since = self._serves_since
            has_failed = since is None or (status >= 0 and time.monotonic() < since + SOON_SECONDS)
            self._failures = self._failures + 1 if has_failed else 0
            if self._failures >= HOPELESS:
                return f"{HOPELESS} pagers have ended at once, the last with status {status}"
            print(f"zcache: the pager has died (status {status}): the next one goes on", file=sys.stderr, flush=True)

    def _start(self) -> None:
        """The next pager, which is told all that there is."""
        self._era += 1
        self._serves_since = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        with theirs:
            command = [*PAGER, str(theirs.fileno())]
            self._pager = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        with contextlib.suppress(OSError):  # it has died already
            messages.send(ours, Packet("store", {**self._store, "era": self._era}, [self._image, *self._files]))
            for number, region in self._regions.items():
                words = {**region.words, "number": number, "refused": region.refused}
                messages.send(ours, Packet("region", words, region.descriptors))

    def _take(self, packet: Packet) -> None:
        """What the pager says."""
        match packet.kind:
            case "serves":
                self._serves_since = time.monotonic()
            case "files":
                self._files = list(packet.descriptors)
            case "sigbus":
                self._regions[packet.words["number"]].refused.append(packet.words["page"])
            case "ended":
                for descriptor in self._regions.pop(packet.words["number"]).descriptors:
                    os.close(descriptor)
                if not self._regions:
                    self._channel.shutdown(socket.SHUT_WR)


def main(descriptor: int) -> None:
    """For one region, whose client is at that socket; until the client has gone. What is meant for
    the client, or for all programs at once, does not end its pager before it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    client = socket.socket(fileno=descriptor)
    said, descriptors, _, _ = socket.recv_fds(client, messages.MAX_PACKET_BYTES, REGIONS_DESCRIPTORS)
    if not said:
        return
    words = json.loads(said)
    keeper = Keeper(words["size"], words.pop("parameters"))
    keeper.add(words, [os.dup(descriptor), *descriptors])
    why = keeper.run()
    if why:
        with contextlib.suppress(OSError):
            client.sendall(json.dumps({"refused": why}).encode() + b"\n")
