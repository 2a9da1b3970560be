"""Real pages, touched at random and verified: `heap_of_pages.py PAGES MIB TOUCHES SEED`.

Fills MIB of anonymous memory with the pages of PAGES (a file or a disk) in random order, as often
as it takes, each with a number of its own in it, and touches TOUCHES pages drawn evenly; every
fourth touch also writes. The last line of its output is JSON: the seconds of both parts, the major
faults, the longest touch, and how many pages were not what was last written to them.

Run by path and without site-packages, so that it is small. All that it needs to know of a page is a
CRC.
"""

import json
import mmap
import os
import random
import resource
import struct
import sys
import time
import zlib
from array import array

PAGE_BYTES = 4096
NUMBER = struct.Struct("<QQ")
#: Where the number is: not at the start, which allocators fill alike.
NUMBER_AT = 2048
WRITE_ONE_IN = 4


def main(pages: str, mib: int, touches: int, seed: int) -> int:
    rng = random.Random(seed)
    page_count = mib * 256
    memory = mmap.mmap(-1, page_count * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    seals = array("I", bytes(4 * page_count))
    begin = time.monotonic()
    _fill(memory, seals, pages, rng)
    filled = time.monotonic()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    wrong, longest = 0, 0.0
    for turn in range(touches):
        number = rng.randrange(page_count)
        start = number * PAGE_BYTES
        before = time.monotonic()
        seal = zlib.crc32(memory[start : start + PAGE_BYTES])
        longest = max(longest, time.monotonic() - before)
        wrong += seal != seals[number]
        if turn % WRITE_ONE_IN == 0:
            NUMBER.pack_into(memory, start + NUMBER_AT, number, turn)
            seals[number] = zlib.crc32(memory[start : start + PAGE_BYTES])
    figures = {
        "fill_seconds": round(filled - begin, 2),
        "touch_seconds": round(time.monotonic() - filled, 2),
        "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
        "longest_touch_seconds": round(longest, 3),
        "wrong_pages": wrong,
    }
    print(json.dumps(figures))
    return 0


def _fill(memory: mmap.mmap, seals: "array[int]", pages: str, rng: random.Random) -> None:
    fd = os.open(pages, os.O_RDONLY)
    source_count = os.lseek(fd, 0, os.SEEK_END) // PAGE_BYTES  # which a disk says, too
    same_filled = set()  # they are to stay so
    for source in range(source_count):
        page = os.pread(fd, PAGE_BYTES, source * PAGE_BYTES)
        if page == page[:8] * (PAGE_BYTES // 8):
            same_filled.add(source)
    for number in range(len(seals)):
        source, start = rng.randrange(source_count), number * PAGE_BYTES
        memory[start : start + PAGE_BYTES] = os.pread(fd, PAGE_BYTES, source * PAGE_BYTES)
        if source not in same_filled:
            NUMBER.pack_into(memory, start + NUMBER_AT, number, 0)
        seals[number] = zlib.crc32(memory[start : start + PAGE_BYTES])
    os.close(fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
