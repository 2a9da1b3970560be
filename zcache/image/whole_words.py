"""Words that outlive a killed server, written so that none is ever torn.

A server can be killed between any two instructions, and its successor goes on with what is in the
image then. So each word there (8 bytes, aligned) has to be written by one store. Nothing more is
needed:

- A signal takes effect between two instructions, never inside a store. Only an instruction that
  makes many stores can be left half done.
- In which order other CPUs see the stores of a live process does not matter. The kernel tells that
  a process has ended when its threads have been taken off their CPUs, and by then all that they
  have stored can be seen by everybody, on arm64 as on x86-64. What a thread has stored is the
  beginning of what it would have stored, in the program's order; threads that write to the same
  words take turns (the store's lock).
- What the keeper reads of a server that is alive is another matter: `signs.Signs` says how that is
  ordered.

One word: `view[index] = word`, on a memoryview of format Q. CPython packs it by a copy of 8 bytes,
a length that the compiler knows, and so by one store (`pack_single` in Objects/memoryobject.c).

Several words: a slice assignment is one `memcpy` of glibc's.

- On x86-64 that copies up to 2 KiB by vector loads and stores, each of whole words where source and
  destination are aligned to words. Beyond that it is `rep movsb`
  (glibc.cpu.x86_rep_movsb_threshold), which can stop at any byte. 64 words are well below
  (`WHOLE_WORDS`).
- On arm64 there is no such length. The generic copy would do, but where the CPU has FEAT_MOPS glibc
  (since 2.39) takes `cpyfp`, `cpyfm` and `cpyfe` for every length
  (sysdeps/aarch64/multiarch/memcpy.c, memcpy_mops.S), and these can stop at any byte, as `rep
  movsb` can.

So there, and on whatever else there is, words are written one by one. That costs 0.1 us a page more
(CPython 3.11, two CPUs of an AMD EPYC, runs of 32 and 64 words: 0.05 to 0.07 us a page copied, 0.16
to 0.20 one by one).
"""

import os
from array import array
from collections.abc import Sequence
from typing import Final, Protocol

#: As many are copied at once, at most.
WHOLE_WORDS: Final = 64

#: Machines, as uname(2) names them, whose `memcpy` of so many words is made of whole stores.
_COPYING_MACHINES: Final = frozenset({"x86_64"})


class Words(Protocol):
    """How several words, aligned, at most `WHOLE_WORDS`, are written to a memoryview of format
    Q."""

    def publish(self, words: memoryview, first: int, values: Sequence[int]) -> None:
        """`values` become the words from `first` on."""

    def fill(self, words: memoryview, first: int, stop: int, run: memoryview) -> None:
        """The words from `first` to `stop` (exclusive) become what `run`, which is at least as
        long, has many times."""


class CopiedWords:
    """By one copy."""

    @staticmethod
    def publish(words: memoryview, first: int, values: Sequence[int]) -> None:
        """See `Words.publish`."""
        words[first : first + len(values)] = array("Q", values)

    @staticmethod
    def fill(words: memoryview, first: int, stop: int, run: memoryview) -> None:
        """See `Words.fill`."""
        words[first:stop] = run[: stop - first]


class SingleWords:
    """One store each."""

    @staticmethod
    def publish(words: memoryview, first: int, values: Sequence[int]) -> None:
        """See `Words.publish`."""
        for index, value in enumerate(values, first):
            words[index] = value

    @staticmethod
    def fill(words: memoryview, first: int, stop: int, run: memoryview) -> None:
        """See `Words.fill`."""
        if first < stop:
            value = run[0]
            for index in range(first, stop):
                words[index] = value


def of_machine(machine: str) -> Words:
    """What is safe on a machine, as uname(2) names it."""
    return CopiedWords() if machine in _COPYING_MACHINES else SingleWords()


_WORDS: Final = of_machine(os.uname().machine)
#: On this machine.
publish: Final = _WORDS.publish
fill: Final = _WORDS.fill
