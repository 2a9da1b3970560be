"""The guest's half of test_remote.py: a guest swaps to itself, and its cold frames go to engines
outside of it, over a network that it has itself.

Runs as root in the test VM, with how many copies there are to be, the port at which the host takes
orders (`zcache.bench.run.orders`), and those of two engines. While a load swaps, an engine is
killed and started again, empty; the other one is paused, for as long as it takes to be noticed, and
goes on; and the first one is cut off: whatever is sent to it or comes from it is dropped, and
nobody is told. Each page of the load's is verified whenever it is touched, and all of them at the
end.

The first thing that is not as it should be is an AssertionError, and exit status 1. How long the
load stood still at most is printed for each scene.
"""

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.vm.bad_disks import memory_mib, run
from zcache.bench.run.orders import order
from zcache.control.answers import TROUBLES
from zcache.control.ask import ask
from zcache.keeper.state import StateFolder
from zcache.swap.buildup import Options
from zcache.swap.swapoff import lock_memory
from zcache.swap.up import swap_area
from zcache.testvm import HOST_ADDRESS
from zcache.testvm.figures import read_netstat, read_vmstat

DISK = "/dev/disk/by-id/virtio-vmdisk0"
#: Small, so that frames leave soon.
BUDGET_MIB = 8
#: Of the guest's memory, what the load leaves: kernel and servers have more than that. (A guest
#: that has less than 256 MiB to give.)
LEFT_MIB, LEFT_SMALL_MIB = 150, 40
#: Under load, once what was done to an engine has been noticed.
PRESS_SECONDS = 6.0
#: How long a touch may take. The README's bound for a read is 2 s; a guest under emulation that
#: swaps has waits of its own.
STALL_SECONDS = 20.0
#: `LOAD MIB`: touches pages at random, and writes every other one anew; for a line on its input it
#: says how many it has touched, how many of them were wrong, and what the longest took; for `all`,
#: the same of every page there is, with a dot now and then meanwhile.
LOAD = """
import ctypes, mmap, os, random, select, sys, time
pages, choose, noise = int(sys.argv[1]) << 8, random.Random(1), os.urandom(8192)
written = bytearray(pages)
everything = choose.sample(range(pages), pages)  # in their order, each would have left before its turn
ctypes.CDLL(None).mlockall(1)  # the program, not the memory to come
memory = mmap.mmap(-1, pages << 12, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
touched = wrong = 0
longest = 0.0

def content(page):
    first = (page * 61 + written[page] * 7) % 6144
    return (page.to_bytes(8, "little") + noise[first:first + 1200]).ljust(4096, bytes(1))

def touch(page, writes):
    global touched, wrong, longest
    expected = content(page)
    if writes:
        written[page] = (written[page] + 1) & 255
        new = content(page)
    begin = time.monotonic()
    found = memory[page << 12:(page + 1) << 12]
    if writes:
        memory[page << 12:(page + 1) << 12] = new
    longest = max(longest, time.monotonic() - begin)
    touched += 1
    wrong += found != expected

for page in range(pages):
    memory[page << 12:(page + 1) << 12] = content(page)
print("held", flush=True)
while True:
    for _ in range(32):
        touch(choose.randrange(pages), choose.random() < 0.5)
    time.sleep(0.002)  # without KVM its processor is wanted by others
    if select.select([0], [], [], 0)[0]:
        words = os.read(0, 16).split()
        if b"all" in words:
            for count, page in enumerate(everything):
                touch(page, False)
                if count % 256 == 0:
                    print(end=".", flush=True)
        print(touched, wrong, longest, flush=True)
        if not words:
            break
        touched, longest = 0, 0.0
"""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Seldom enough not to be a load itself."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: {ask(StateFolder().control, 'status')}"
        time.sleep(0.3)


class Look(NamedTuple):
    """What the load has found since the one before."""

    touched: int
    longest_seconds: float


class Load:
    """It runs for the length of a `with`."""

    def __init__(self, mib: int) -> None:
        command = [sys.executable, "-I", "-S", "-c", LOAD, str(mib)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._answer(300) == "held"

    def look(self, word: str = "look", seconds: float = 60.0) -> Look:
        assert self._process.stdin
        self._process.stdin.write(word.encode() + b"\n")
        touched, wrong, longest = self._answer(seconds).split()
        assert wrong == "0", f"{wrong} pages are wrong"
        assert int(touched) > 0, "nothing was touched"
        return Look(int(touched), float(longest))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self, seconds: float) -> str:
        """A line; it may take longer, but not without a dot."""
        assert self._process.stdout
        said = b""
        while not said.endswith(b"\n"):
            assert select.select([self._process.stdout], [], [], seconds)[0], f"no answer in {seconds} s"
            more = os.read(self._process.stdout.fileno(), 4096)
            assert more, f"the load ended with {self._process.wait()}"
            said += more
        return said.decode().strip(".\n")


class Guest:
    """A swap that is on, its load, and the engines that it has."""

    def __init__(self, copies: int, order_port: int, ports: list[int], load: Load) -> None:
        self.copies = copies
        self.load = load
        self._order_port = order_port
        self._ports = ports
        self._control = StateFolder().control

    def status(self) -> dict[str, Any]:
        return ask(self._control, "status")

    def is_out_of_reach(self, engine: int) -> bool:
        """As the status says it."""
        pattern = rf"remote \S+:{self._ports[engine]}: out of reach"
        return any(re.match(pattern, reason) for reason in self.status()["reasons"])

    def is_well(self) -> bool:
        """All engines are there, and each frame has its copies again."""
        status = self.status()
        missing = self.copies * status["remote_frames"] - status["remote_copies"] if self.copies == 2 else 0
        return not any("out of reach" in reason for reason in status["reasons"]) and missing == 0

    def order(self, words: str) -> None:
        order(self._order_port, words)

    @contextlib.contextmanager
    def killed(self, engine: int) -> Iterator[None]:
        """It comes back empty, as another process."""
        self.order(f"kill {engine}")
        yield
        self.order(f"start {engine}")

    @contextlib.contextmanager
    def paused(self, engine: int) -> Iterator[None]:
        """The kernel of its machine accepts what is sent, and nobody answers."""
        self.order(f"pause {engine}")
        yield
        self.order(f"resume {engine}")

    @contextlib.contextmanager
    def cut_off(self, engine: int) -> Iterator[None]:
        """Packets are dropped, both ways."""
        card = next(Path("/sys/class/net").glob("*/device")).parent.name
        lines = [f"qdisc add dev {card} clsact"]
        for way, end in (("egress", "dport"), ("ingress", "sport")):
            match = f"u32 match ip {end} {self._ports[engine]} 0xffff"
            lines.append(f"filter add dev {card} {way} protocol ip {match} action drop")
        done = subprocess.run(["tc", "-batch", "-"], input="\n".join(lines), text=True, check=False)
        assert done.returncode == 0
        yield
        run("tc", "qdisc", "del", "dev", card, "clsact")

    def goes_through(
        self, what: Callable[[int], contextlib.AbstractContextManager[None]], engine: int, name: str
    ) -> None:
        """While that is done to an engine, and after it, until all is as it was."""
        begin, before = time.monotonic(), self.status()
        self.load.look()
        with what(engine):
            wait_until(lambda: self.is_out_of_reach(engine), f"{name}: nobody has noticed")
            noticed_seconds = time.monotonic() - begin
            time.sleep(PRESS_SECONDS)
            found = self.load.look()
        wait_until(self.is_well, f"{name}: not mended", 180)
        after = self.load.look()
        longest_seconds = max(found.longest_seconds, after.longest_seconds)
        status = self.status()
        counted = {
            key: status[key] - before[key]
            for key in ("remoted_frames", "remote_gets", "remote_hedged_gets", "remirrored_frames", "fetch_retries")
        }
        touched = found.touched + after.touched
        print(
            f"{name}: noticed after {noticed_seconds:.1f} s, all well after {time.monotonic() - begin:.1f} s; "
            f"{touched} pages touched, the longest took {longest_seconds * 1000:.0f} ms; {counted}",
            flush=True,
        )
        assert longest_seconds < STALL_SECONDS, longest_seconds


def swap_words(copies: int, ports: list[int], heap_mib: int) -> list[str]:
    words = [f"size={heap_mib}M", f"budget={BUDGET_MIB}M", f"remote_budget={heap_mib * 5 // 4}M"]
    words += [f"remote=redis://{HOST_ADDRESS}:{port}" for port in ports]
    words += [f"remote_copies={copies}", "hardening=require"]
    return words if copies == 2 else [*words, f"backing={DISK}"]


def main(copies: int, order_port: int, *ports: int) -> None:
    run("modprobe", "--all", "sch_ingress", "cls_u32", "act_gact")
    memory = memory_mib()
    heap_mib = memory - (LEFT_MIB if memory > 256 else LEFT_SMALL_MIB)
    begin = time.monotonic()
    with swap_area(Options(parameters=tuple(swap_words(copies, list(ports), heap_mib)))):
        lock_memory()
        print(f"{memory} MiB: swap is on after {time.monotonic() - begin:.0f} s", flush=True)
        begin = time.monotonic()
        with Load(heap_mib) as load:
            guest = Guest(copies, order_port, list(ports), load)
            wait_until(lambda: guest.status()["remote_gets"] > 100, "no frame comes back", 120)
            status = guest.status()
            print(
                f"swapping after {time.monotonic() - begin:.0f} s: {status['stored_pages']} pages out, in "
                f"{status['remote_frames']} frames outside, {status['remote_copies']} copies",
                flush=True,
            )
            alone = load.look()
            print(f"nothing wrong: the longest took {alone.longest_seconds * 1000:.0f} ms", flush=True)
            guest.goes_through(guest.killed, 0, "killed")
            guest.goes_through(guest.paused, 1, "paused")
            guest.goes_through(guest.cut_off, 0, "cut off")
            begin = time.monotonic()
            every = load.look("all")  # however long that takes without KVM: 50 to 300 a second
            print(f"all pages: {every}, {time.monotonic() - begin:.0f} s", flush=True)
            assert every.longest_seconds < STALL_SECONDS, every
        status = guest.status()
        print({name: status[name] for name in (*TROUBLES, "remote_lost_frames", "remote_missing_copies")}, flush=True)
        assert not status["lost_pages"] and not status["fetch_errors"] and not status["checksum_errors"], status
        assert not status["failed_puts"] and not status["remote_lost_frames"], status
        assert ask(StateFolder().control, "check")["balanced"]
        vmstat = read_vmstat()
        print(f"{vmstat['pswpout']} pages were swapped out, {vmstat['pswpin']} in", flush=True)
        print({name: read_netstat()[name] for name in ("PFMemallocDrop", "TCPTimeouts")}, flush=True)
        begin = time.monotonic()
    print(f"swap is off after {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
