"""What is said of requests that fail, and to their clients."""

import errno

import pytest

from tests.support.clock import FakeClock
from zcache.block.failures import Failures
from zcache.errors import AT_ENGINES, BadInput, PageDamaged, PageLost, StoreFull
from zcache.hardening.repeats import REST_SECONDS


class Told:
    """`Failures` that keeps what it says, and the errno of the last one."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.lines: list[str] = []
        self.number = 0
        self.failures = Failures(self._set, self.lines.append, self.clock)

    def _set(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize(
    ("error", "number", "said"),
    [
        (StoreFull("no room for 1 of 1 pages: RAM is full"), errno.ENOSPC, ["RAM is full", "stays in its RAM"]),
        (PageLost("page 5"), errno.EIO, ["found no room", "write or trim it"]),
        (PageDamaged("slot 3: EIO: Input/output error"), errno.EIO, ["slot 3", "look at the disk"]),
        (
            PageDamaged(f"reading slot 3 {AT_ENGINES}: reset"),
            errno.EIO,
            ["slot 3", "; look at the engines (`zcache st"],
        ),
        (OSError(errno.EROFS, "Read-only file system"), errno.EROFS, ["Read-only file system", "look at the disk"]),
        (OSError("?"), errno.EIO, ["a bug in zcache", "OSError: ?"]),
        (MemoryError(), errno.ENOMEM, ["no memory", "free memory"]),
        (KeyError("a\nb" * 1000), errno.EIO, ["a bug in zcache, please report it: KeyError", "test_failures.py:"]),
    ],
)
def test_a_failure_is_one_line_with_errno_and_what_to_do(error: Exception, number: int, said: list[str]) -> None:
    told = Told()
    for _ in range(100):
        try:
            raise error.with_traceback(None)
        except Exception as caught:
            told.failures.note("write", "device", caught)
    assert told.number == number
    (line,) = told.lines
    assert line.startswith(f"zcache: device: a write failed, {errno.errorcode[number]}: ")
    assert "\n" not in line and len(line) < 1000
    for part in said:
        assert part in line
    told.clock.seconds += REST_SECONDS[0]
    told.failures.say_counts()
    assert told.lines[1].startswith("zcache: the same again, 99 times in 10 s: device: a write failed, ")


def test_a_client_that_is_refused_is_told_which_exports_there_are() -> None:
    told = Told()
    for name in ("a", "it's", 'b"', "'\""):
        told.failures.refuse(BadInput(f"no export is called {name!r}; there are device"))
    assert told.lines == ["zcache: a client was refused: no export is called 'a'; there are device"]
    assert told.number == errno.ENOENT
    told.failures.refuse(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"))
    assert told.lines[1] == "zcache: a client was refused: it asked for an export whose name is not UTF-8"
    told.failures.say_counts(at_the_end=True)
    assert told.lines[2].startswith("zcache: the same again, 3 times in ")
