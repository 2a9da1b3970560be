"""Overwrites all of an export again and again with pages that do not compress, and reads it back.

    python -m zcache.bench.filesystems.overwrite SOCKET ROUNDS

Prints, as JSON, how many pages are lost: cannot be read, or are not as they were last written; and
how many writes failed. A process of its own, for a disk that hangs hangs it.
"""

import json
import os
import random
import sys
from typing import Final

import nbd

PAGE_BYTES: Final = 4096
BLOCK_BYTES: Final = 16 * PAGE_BYTES


def main(socket: str, rounds: int) -> None:
    client = nbd.NBD()
    client.connect_unix(socket)
    blocks = client.get_size() // BLOCK_BYTES
    noise = os.urandom(1 << 20)

    def content(block: int, turn: int) -> bytes:
        start = (block * 7919 + turn * 104729) % (len(noise) - BLOCK_BYTES)
        data = bytearray(noise[start : start + BLOCK_BYTES])
        for page in range(0, BLOCK_BYTES, PAGE_BYTES):
            data[page : page + 16] = (block << 64 | turn << 32 | page).to_bytes(16, "little")
        return bytes(data)

    def read(length: int, offset: int) -> bytes | None:
        try:
            return bytes(client.pread(length, offset))
        except nbd.Error:
            return None

    failed_writes = 0
    for turn in range(rounds):
        for block in random.Random(turn).sample(range(blocks), blocks):
            try:
                client.pwrite(content(block, turn), block * BLOCK_BYTES)
            except nbd.Error:
                failed_writes += 1
    lost = 0
    for block in range(blocks):
        wanted = content(block, rounds - 1)
        if read(BLOCK_BYTES, block * BLOCK_BYTES) == wanted:
            continue
        for page in range(0, BLOCK_BYTES, PAGE_BYTES):
            lost += read(PAGE_BYTES, block * BLOCK_BYTES + page) != wanted[page : page + PAGE_BYTES]
    print(json.dumps({"lost": lost, "failed_writes": failed_writes}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
