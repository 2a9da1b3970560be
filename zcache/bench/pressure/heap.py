"""Memory that is touched page by page at random, and verified: `heap.py MIB PROCESSES SECONDS
REST_SECONDS`.

Fills MIB of anonymous memory, divided among as many processes, with pages that compress to between
a quarter and three quarters and are never same-filled; touches them for SECONDS or more, resting in
between; every other touch also writes. The last line of its output is JSON: how many pages were
touched, and the longest that one took. A page that is not what was last written to it ends
everything with exit status 1 and a line that names it.
"""

import json
import mmap
import os
import random
import struct
import sys
import time

PAGE_BYTES = 4096
HEADER = struct.Struct("<QII")
# A prime: a page's template differs from its neighbours', and from its own when it is written
# again.
TEMPLATE_COUNT = 61


class Heap:
    """Pages of which each says its owner, its number and how often it was written."""

    def __init__(self, owner: int, page_count: int) -> None:
        rng = random.Random(owner)
        self._owner = owner
        self._templates = [_template(rng, index) for index in range(TEMPLATE_COUNT)]
        self._memory = mmap.mmap(-1, page_count * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._writes = bytearray(page_count)
        self.touches = 0
        self.longest_seconds = 0.0
        for number in range(page_count):
            self._touch(number, write=True, read=False)

    def touch_at_random(self, seconds: float, rest_seconds: float) -> None:
        """For so long, and until an eighth as many pages were touched as there are: a slow machine
        shall swap, too."""
        rng = random.Random(self._owner)
        deadline = time.monotonic() + seconds
        least = self.touches + len(self._writes) // 8
        while time.monotonic() < deadline or self.touches < least:
            number = rng.randrange(len(self._writes))
            self._touch(number, write=rng.random() < 0.5, read=True)
            if rest_seconds:
                time.sleep(rest_seconds)

    def _touch(self, number: int, *, write: bool, read: bool) -> None:
        start = number * PAGE_BYTES
        expected = self._page(number) if read else b""
        if write:
            self._writes[number] = (self._writes[number] + 1) & 255
            new = self._page(number)
        begin = time.monotonic()
        found = self._memory[start : start + PAGE_BYTES] if read else b""
        if write:
            self._memory[start : start + PAGE_BYTES] = new
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - begin)
        self.touches += 1
        if found != expected:
            sys.exit(f"heap: page {number} of {self._owner} is WRONG: it begins with {found[:16].hex()}")

    def _page(self, number: int) -> bytes:
        writes = self._writes[number]
        template = self._templates[(number + writes) % TEMPLATE_COUNT]
        return HEADER.pack(number, self._owner, writes) + template


def _template(rng: random.Random, index: int) -> bytes:
    size = PAGE_BYTES - HEADER.size
    return (rng.randbytes(PAGE_BYTES // 4 + 32 * index) + b"zcache " * (size // 7))[:size]


def run(owner: int, page_count: int, seconds: float, rest_seconds: float) -> dict[str, float]:
    heap = Heap(owner, page_count)
    heap.touch_at_random(seconds, rest_seconds)
    return {"touches": heap.touches, "longest_touch_seconds": round(heap.longest_seconds, 3)}


def main(mib: int, processes: int, seconds: float, rest_seconds: float) -> int:
    page_count = mib * 256 // processes
    children = {}
    for owner in range(1, processes):
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(write_fd, json.dumps(run(owner, page_count, seconds, rest_seconds)).encode())
            return 0
        os.close(write_fd)
        children[pid] = read_fd
    results = [run(0, page_count, seconds, rest_seconds)]
    failed = 0
    for pid, read_fd in children.items():
        _, status = os.waitpid(pid, 0)
        failed += status != 0
        results += [json.loads(os.read(read_fd, 4096))] if status == 0 else []
    print(
        json.dumps(
            {
                "touches": sum(result["touches"] for result in results),
                "longest_touch_seconds": max(result["longest_touch_seconds"] for result in results),
            }
        )
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
