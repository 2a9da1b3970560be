"""Fills the page cache: `reader.py DEVICE` reads a stamped disk from end to end, again and again,
until SIGTERM.

Through the page cache, as any file is read; a file system in between would add nothing to the
pressure. Each MiB begins with its number, which is verified. The last line of its output is JSON:
how much was read.
"""

import json
import os
import signal
import struct
import sys

BLOCK_BYTES = 1 << 20
STAMP = struct.Struct("<8sQ")
MAGIC = b"zcachepg"


def make(path: str, size_mib: int) -> None:
    """A sparse image of such a disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for block in range(size_mib):
        os.pwrite(descriptor, STAMP.pack(MAGIC, block), block * BLOCK_BYTES)
    os.ftruncate(descriptor, size_mib * BLOCK_BYTES)
    os.close(descriptor)


def main(device: str) -> int:
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    descriptor = os.open(device, os.O_RDONLY)
    size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
    buffer = bytearray(BLOCK_BYTES)
    blocks = 0
    while not ended:
        block = blocks % (size_bytes // BLOCK_BYTES)
        os.preadv(descriptor, [buffer], block * BLOCK_BYTES)
        if STAMP.unpack_from(buffer) != (MAGIC, block):
            sys.exit(f"reader: block {block} of {device} is WRONG: it begins with {buffer[:16].hex()}")
        blocks += 1
    print(json.dumps({"read_mib": blocks}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
