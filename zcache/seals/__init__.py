"""Seals: what a frame leaves RAM under, and what proves, when it comes back, that it is what was
last written.

The contract, which every seal's contract suite runs:

- `sealed` makes frames ready to be written, each under a *birth*, a word that no other write of any
  frame ever has (`zcache.pageframes.frames`); their seals, `seal_bytes` each, are kept in the frame
  table and never below. RAM slots are only read: gets go on meanwhile.
- `opens` tells whether bytes that were read are those; a bit that flipped, in them, in the seal or
  in the birth, and another frame's bytes, are refused. The bytes are then worthless, but in
  nobody's way: they are in a RAM slot that is nobody's home.
- Both are called without the store's lock and from several threads. But for small objects they take
  no memory that was not there from the start, and they wait for nothing but their like.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["Seal"]


class Seal(Protocol):
    """One way to seal, and its key if it has one."""

    encrypts: bool
    seal_bytes: int

    def sealed(
        self, frames: Sequence[int], first_birth: int, views: Sequence[memoryview], most_frames: int = 0
    ) -> AbstractContextManager[tuple[Sequence[memoryview], list[bytes]]]:
        """What to write for the frames in `views`, good for as long as the context is entered, and
        their seals; births count up from `first_birth`. A flight of the kind that has `most_frames`
        at most may wait for others of that kind, and for no others (0: the smallest kind that there
        is for so many)."""

    def opens(self, frame: int, birth: int, seal: bytes, view: memoryview) -> bool:
        """Make `view` what it was when it was sealed, if it is what was written then."""

    def populate(self) -> None:
        """Fault in what both will touch."""
