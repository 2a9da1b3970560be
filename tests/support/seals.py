"""Both seals, by what `encrypt=` says."""

from typing import Final

from zcache.reclaim import BATCH_FRAMES, SYNC_BATCH_FRAMES
from zcache.seals import Seal
from zcache.seals.aead import Aead
from zcache.seals.crc import CRC

FRAME_BYTES: Final = 4096


def new_seal(encrypt: str, key: bytes = bytes(range(32))) -> Seal:
    return Aead(key, FRAME_BYTES, (SYNC_BATCH_FRAMES, BATCH_FRAMES)) if encrypt == "yes" else CRC
