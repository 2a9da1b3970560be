"""Real pages to measure with: the heaps of programs that are started for it, read through /proc.

A figure measured on made-up pages says nothing: both codecs and allocators live from how real heaps
are built. Nothing is shipped; the corpus is gathered anew at each run, and described by its own
statistics, since it differs between machines.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcache.errors import EnvironmentProblem
from zcache.pages.codec import parse_codec

PAGE_BYTES: Final = 4096
START_SECONDS: Final = 30

#: A CPython that parses its own library and keeps the trees, and has dictionaries of small objects:
#: a typical interpreter heap.
_PYTHON: Final = """
import ast, json, pathlib, sys, sysconfig
library = pathlib.Path(sysconfig.get_path("stdlib"))
trees = [ast.parse(path.read_bytes()) for path in sorted(library.glob("*.py"))[:40]]
records = [{"id": n, "name": f"user {n}", "tags": [str(n % 7), "x" * (n % 50)], "score": n / 7} for n in range(40000)]
text = json.dumps(records)
print("ready", flush=True)
sys.stdin.read()
"""

#: The same in another runtime.
_NODE: Final = """
const records = [];
for (let n = 0; n < 200000; n++)
  records.push({ id: n, name: `user ${n}`, tags: [String(n % 7), "x".repeat(n % 50)], score: n / 7 });
globalThis.kept = [records, JSON.parse(JSON.stringify(records)), new Map(records.map((r) => [r.name, r]))];
console.log("ready");
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
"""

#: Redis itself, under the name that the package without a service has it: it is told apart by how
#: it is called.
_REDIS: Final = "/usr/bin/redis-check-rdb"
_REDIS_KEYS: Final = 120_000


@dataclass(frozen=True)
class Corpus:
    """`pages` of 4096 bytes each and what they are from."""

    name: str
    pages: list[bytes]

    def same_filled(self) -> float:
        """The share of pages that repeat one word."""
        return sum(page == page[:8] * (PAGE_BYTES // 8) for page in self.pages) / len(self.pages)

    def duplicates(self) -> float:
        """The share of pages that are there already."""
        return 1 - len(set(self.pages)) / len(self.pages)

    def ratio(self, codec_name: str) -> float:
        """Of a codec alone, of all pages but the same-filled: their bytes to what they are
        compressed to."""
        compress = parse_codec(codec_name).compress
        bodies = [page for page in self.pages if page != page[:8] * (PAGE_BYTES // 8)]
        if not bodies:
            return float("nan")
        return len(bodies) * PAGE_BYTES / sum(min(len(compress(memoryview(page))), PAGE_BYTES) for page in bodies)

    def describe(self) -> str:
        """One line of statistics."""
        return (
            f"{self.name}: {len(self.pages)} pages ({len(self.pages) * PAGE_BYTES >> 20} MiB), "
            f"{self.same_filled():.1%} same-filled, {self.duplicates():.1%} duplicates"
        )


def gather(limit_pages: int) -> list[Corpus]:
    """One corpus for each kind of program that this machine has; at least CPython's."""
    found = [python_heap(limit_pages)]
    if shutil.which("node"):
        found.append(node_heap(limit_pages))
    if Path(_REDIS).exists():
        found.append(redis_heap(limit_pages))
    return found


def mixed(corpora: list[Corpus], limit_pages: int, seed: int) -> Corpus:
    """As many pages of each, a twentieth of same-filled ones and a twentieth of noise, in random
    order."""
    rng = random.Random(seed)
    special = limit_pages // 20
    pages = [rng.randbytes(PAGE_BYTES) for _ in range(special)]
    pages += [rng.randbytes(4) * (PAGE_BYTES // 4) for _ in range(special)]
    share = (limit_pages - len(pages)) // len(corpora)
    for corpus in corpora:
        pages += rng.sample(corpus.pages, min(share, len(corpus.pages)))
    rng.shuffle(pages)
    return Corpus("mixed", pages)


def python_heap(limit_pages: int) -> Corpus:
    """Up to `limit_pages` pages of a CPython heap, untouched (all-zero) ones left out as the kernel
    would not swap them."""
    return _of_program("CPython heap", [sys.executable, "-c", _PYTHON], limit_pages)


def node_heap(limit_pages: int) -> Corpus:
    """The same of Node.js."""
    return _of_program("Node.js heap", ["node", "-e", _NODE], limit_pages)


def redis_heap(limit_pages: int) -> Corpus:
    """The same of a Redis that was filled with strings, hashes and sorted sets."""
    with tempfile.TemporaryDirectory(prefix="zcache-redis-") as folder:
        path = Path(folder) / "redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
        command += ["--dir", folder, "--logfile", f"{folder}/log"]
        with subprocess.Popen(command, executable=_REDIS, stdout=subprocess.DEVNULL) as server:
            try:
                with _connected(path, lambda: server.poll() is None) as connection:
                    _fill_redis(connection)
                    return Corpus("Redis heap", _anonymous_pages(server.pid, limit_pages))
            finally:
                server.terminate()


@contextlib.contextmanager
def _connected(path: Path, is_running: Callable[[], bool]) -> Iterator[socket.socket]:
    deadline = time.monotonic() + START_SECONDS
    with socket.socket(socket.AF_UNIX) as connection:
        while True:
            try:
                connection.connect(str(path))
                break
            except OSError as error:
                if not is_running() or time.monotonic() > deadline:
                    raise EnvironmentProblem(f"redis-server does not answer: {error.strerror}") from None
                time.sleep(0.05)
        yield connection


def _fill_redis(connection: socket.socket) -> None:
    """By its own protocol (RESP): a request is a list of texts, each with its length before it."""
    replies = connection.makefile("rb")
    for start in range(0, _REDIS_KEYS, 1000):
        requests: list[tuple[str, ...]] = []
        for n in range(start, start + 1000):
            record = json.dumps({"id": n, "name": f"user {n}", "tags": [str(n % 7), "x" * (n % 50)], "score": n / 7})
            requests.append(("SET", f"session:{n:08x}", record))
            requests.append(("HSET", f"user:{n % 20000}", f"field{n // 20000}", f"value {n}"))
            requests.append(("ZADD", f"board:{n % 100}", str(n), f"member {n}"))
        connection.sendall(b"".join(map(_resp, requests)))
        for _ in requests:
            reply = replies.readline()
            if reply[:1] not in (b"+", b":"):
                raise EnvironmentProblem(f"redis-server said {reply!r}")


def _resp(words: tuple[str, ...]) -> bytes:
    return f"*{len(words)}\r\n".encode() + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in map(str.encode, words))


def _of_program(name: str, command: list[str], limit_pages: int) -> Corpus:
    """Of one that says when it is ready, and ends at the end of its input."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        if child.stdout.readline() != "ready\n":
            raise EnvironmentProblem(f"{command[0]} ended before its heap was filled")
        return Corpus(name, _anonymous_pages(child.pid, limit_pages))


def _anonymous_pages(pid: int, limit_pages: int) -> list[bytes]:
    """Of a process that stands still meanwhile: its heap would be moved about under us."""
    pages: list[bytes] = []
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    os.kill(pid, signal.SIGSTOP)
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, access, _, _, inode, *path = line.split()
            if not access.startswith("rw") or inode != "0" or (path and path[0] != "[heap]"):
                continue
            start, stop = (int(end, 16) for end in span.split("-"))
            for address in range(start, stop, PAGE_BYTES):
                if len(pages) == limit_pages:
                    return pages
                page = os.pread(memory, PAGE_BYTES, address)
                if page.strip(b"\0"):
                    pages.append(page)
    finally:
        os.kill(pid, signal.SIGCONT)
        os.close(memory)
    return pages
