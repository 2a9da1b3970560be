"""Real pages to measure with: the heap of a program that is started for it, read through /proc.

A figure measured on made-up pages says nothing: both codecs and allocators live from how real heaps are built.
Nothing is shipped; the corpus is gathered anew at each run, and described by its own statistics, since it differs
between machines.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = 4096

#: A CPython that parses its own library and keeps the trees, and has dictionaries of small objects: a typical
#: interpreter heap.
_PROGRAM: Final = """
import ast, json, pathlib, sys, sysconfig
library = pathlib.Path(sysconfig.get_path("stdlib"))
trees = [ast.parse(path.read_bytes()) for path in sorted(library.glob("*.py"))[:40]]
records = [{"id": n, "name": f"user {n}", "tags": [str(n % 7), "x" * (n % 50)], "score": n / 7} for n in range(40000)]
text = json.dumps(records)
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Corpus:
    """`pages` of 4096 bytes each and what they are from."""

    name: str
    pages: list[bytes]

    def describe(self) -> str:
        """One line of statistics."""
        same = sum(page == page[:8] * (PAGE_BYTES // 8) for page in self.pages)
        distinct = len(set(self.pages))
        return (
            f"{self.name}: {len(self.pages)} pages ({len(self.pages) * PAGE_BYTES >> 20} MiB), "
            f"{same / len(self.pages):.1%} same-filled, {1 - distinct / len(self.pages):.1%} duplicates"
        )


def python_heap(limit_pages: int) -> Corpus:
    """Up to `limit_pages` pages of a CPython heap, untouched (all-zero) ones left out as the kernel would not swap
    them."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        child.stdout.readline()
        pages = _anonymous_pages(child.pid, limit_pages)
    return Corpus("CPython heap", pages)


def _anonymous_pages(pid: int, limit_pages: int) -> list[bytes]:
    pages: list[bytes] = []
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
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
        os.close(memory)
    return pages
