"""The seal of `encrypt=yes`: AES-256-GCM. What is below is noise without the key, and a frame that
comes back is what was last written, or refused.

- The key is made anew for each swap and never touches a disk: it is in the image (a memfd), or in
  this process alone.
- The nonce is the frame's birth, which no other write under that key has, or will have: not of
  another frame, not when a write that failed is tried again, not by the next server. The frame's
  number is additional data.
- The tag is the seal, all 16 bytes. Like the nonce it is in RAM, not below: an attacker who owns
  the disk cannot even give an older version of a frame back.

What it does not hide is which slots are written and read, and when. Nothing is said of content by
length: a slot is a whole frame, however full.

GCM cannot work in place here (a get may read the frame that is being sealed), so frames are
encrypted into memory that was made for that: for one flight of each kind. A second flight of that
kind waits until the first was written. So a flight says of which kind it is: a small one in the
background, which may be to a network, has no put's flight wait for it.

Chosen by measurement (us a frame of 4096 bytes, cryptography 50.0, AES-NI and VAES):
`AESGCM.encrypt_into` 1.35 and `decrypt_into` 1.45 with the copy that puts the tag behind the frame;
`encrypt` 1.54, `decrypt` 1.62 and an object of 4 KiB each; `Cipher(...).encryptor().update_into`
4.2. From 2 KiB on they release the GIL. All of `sealed` and `opens`: 1.4 and 1.7; 16 and 16 without
AES instructions.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from zcache.image.image import SEAL_BYTES
from zcache.linux import memory
from zcache.linux.memory import anonymous_memory

TAG_BYTES: Final = SEAL_BYTES["yes"]
NONCE_BYTES: Final = 12
FRAME_NUMBER_BYTES: Final = 4


class _Flight:
    """Memory for the ciphertext of `frame_count` frames, one behind the other; who writes from it
    holds `turn`."""

    def __init__(self, frame_count: int, frame_bytes: int) -> None:
        self.turn = threading.Lock()
        self.memory = memoryview(anonymous_memory((frame_count + 1) * frame_bytes))
        starts = [index * frame_bytes for index in range(frame_count)]
        self.bodies = [self.memory[start : start + frame_bytes] for start in starts]
        # A tag is written behind its frame, and overwritten by the next frame.
        self.rooms = [self.memory[start : start + frame_bytes + TAG_BYTES] for start in starts]


class Aead:
    """A `Seal`. `flights_frames` are the most frames that the flights of each kind have, smallest
    first."""

    encrypts = True
    seal_bytes = TAG_BYTES

    def __init__(self, key: bytes, frame_bytes: int, flights_frames: Sequence[int]) -> None:
        self._aead = AESGCM(key)
        self._frame_bytes = frame_bytes
        self._flights = [_Flight(frame_count, frame_bytes) for frame_count in flights_frames]
        self._read_turn = threading.Lock()
        self._read_memory = memoryview(anonymous_memory(2 * frame_bytes))
        self._read = self._read_memory[: frame_bytes + TAG_BYTES]

    @contextmanager
    def sealed(
        self, frames: Sequence[int], first_birth: int, views: Sequence[memoryview], most_frames: int = 0
    ) -> Iterator[tuple[Sequence[memoryview], list[bytes]]]:
        """The frames' ciphertexts, and their tags. Waits for other flights of its kind."""
        encrypt_into = self._aead.encrypt_into
        size = self._frame_bytes
        count = len(views)
        flight = next(flight for flight in self._flights if max(count, most_frames) <= len(flight.bodies))
        with flight.turn:
            tags = []
            for frame, birth, view, room in zip(
                frames, range(first_birth, first_birth + count), views, flight.rooms, strict=False
            ):
                encrypt_into(_nonce(birth), view, frame.to_bytes(FRAME_NUMBER_BYTES, "little"), room)
                tags.append(bytes(room[size:]))
            yield flight.bodies[:count], tags

    def opens(self, frame: int, birth: int, seal: bytes, view: memoryview) -> bool:
        """Decrypts `view`."""
        read, size = self._read, self._frame_bytes
        with self._read_turn:
            read[:size] = view
            read[size:] = seal
            try:
                self._aead.decrypt_into(_nonce(birth), read, frame.to_bytes(FRAME_NUMBER_BYTES, "little"), view)
            except InvalidTag:
                return False
        return True

    def populate(self) -> None:
        """Fault in the memory for flights and reads."""
        for flight in self._flights:
            memory.populate(flight.memory)
        memory.populate(self._read_memory)


def _nonce(birth: int) -> bytes:
    return birth.to_bytes(NONCE_BYTES, "little")
