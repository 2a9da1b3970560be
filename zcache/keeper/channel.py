"""What keeper and server say to each other: single words, and descriptors beside them.

Each server has one end of a socket pair, its channel, from its start on:

    server                          keeper
      | ---- READY -----------------> |   a standby, which needs nothing any more but the word
      | <--- BEGIN, its files ------- |   serve now, and leave an heir; or BEGIN_ALONE: without one
      | ---- the heir's pid --------> |   with the keeper's end of the heir's own channel
      | ---- FILES, descriptors ----> |   from the first server: the files that it has opened

An heir begins with READY on its own channel. A channel that is closed ends whoever waits at its
other end for the word. A running keeper starts servers of newer code with these words, so none of
them may ever change. This file imports nothing: a standby locks all that it has loaded.
"""

from typing import Final

READY: Final = b"r"
BEGIN: Final = b"!"
BEGIN_ALONE: Final = b"1"
#: Any other word than these is an heir's pid, in decimal.
FILES: Final = b"b"

#: In one message; the kernel's SCM_MAX_FD is 253.
MAX_FILES: Final = 128
