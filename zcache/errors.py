"""The kinds of error, split by blame.

`BadInput` is the caller's: one line that names the key, what was given and what may be given.
`PageLost`, `PageDamaged` and `StoreFull` are answers to one request and end as an errno at the
client. `EnvironmentProblem` is the machine's: it says what to do about it; `SwapError` is a
command's for turning swap on or off, and may be either. Our own bugs are assertions and
`Imbalance`.
"""

import re
from typing import Final

#: What a `PageDamaged` says of bytes that engines have, and no disk.
AT_ENGINES: Final = "at the engines"


class ZcacheError(Exception):
    """Anything that zcache raises on purpose."""


class BadInput(ZcacheError):
    """A parameter is wrong. The text is one line: `key=value: what is wrong; what may be given`."""


class EnvironmentProblem(ZcacheError):
    """The machine does not give what is needed; the text says what to do."""


class PageLost(ZcacheError):
    """The page's last put failed: its data exists nowhere. Writing or trimming it ends this state.
    (EIO)"""


class PageDamaged(ZcacheError):
    """The bytes cannot be read, or are not those that were stored: seal or codec says so. (EIO)"""


class StoreFull(ZcacheError):
    """No pageframe in RAM and none below could be had for a put. (ENOSPC)"""


class Imbalance(ZcacheError):
    """`check()` found that the store's books do not balance, or `rebuild()` that an image
    contradicts itself."""


class SwapError(ZcacheError):
    """Something the user or the machine must change; str() is one line that says what."""


class StillSwappingError(SwapError):
    """The swap area could not be turned off: the server and the device were left as they are, on
    purpose."""


def repeatable(text: str) -> str:
    """What a message may repeat of something that was given: if it may be a URL, not who logs in
    with what password."""
    return re.sub(r"(?s)^(\w*://)?.*@", r"\1…@", text)
