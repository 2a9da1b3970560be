"""Both seals, by what `encrypt=` says."""

from typing import Final

from zcache.reclaim.flight import flights_frames
from zcache.seals import Seal
from zcache.seals.aead import Aead
from zcache.seals.crc import CRC

FRAME_BYTES: Final = 4096


def new_seal(encrypt: str, key: bytes = bytes(range(32)), frame_bytes: int = FRAME_BYTES) -> Seal:
    return Aead(key, frame_bytes, flights_frames(frame_bytes)) if encrypt == "yes" else CRC
