"""A line that comes again is counted instead: so a log stays readable, and bounded, whatever fills
it.

Lines are of one kind if they differ only in words with digits in them and in what stands in quotes.
The first of a kind is to be said at once. Those that follow are counted, and the count is due 10 s
later, then after a minute, ten minutes, and every hour for as long as they come. A kind that has
not come for an hour is new again.

A client can make up kinds. When as many are known as are remembered, whatever is of none of them is
one more kind.

No lock, no I/O: its owner has both.
"""

import re
from typing import Final

from zcache.clock import Clock

#: How lines that say how often another came begin. Those are never counted.
AGAIN: Final = "zcache: the same again"

#: When a count is due, after the line or the count before it.
REST_SECONDS: Final = (10.0, 60.0, 600.0, 3600.0)
#: nbdkit 1.32 has some 150 messages that a client can bring about; one server sees few of them.
MAX_KINDS: Final = 64
#: A line is cut behind this many characters. The longest of ours is the self-check's, with some 800
#: when nothing holds.
MAX_LINE: Final = 2000

_VARIABLE: Final = re.compile(r"'[^']*'|\"[^\"]*\"|\w*\d\w*|\b[0-9a-fA-F]{8,}\b")
_OTHERS: Final = "others"


class _Kind:
    """What is known of one kind."""

    __slots__ = ("count", "last", "rests", "since")

    def __init__(self, now: float) -> None:
        self.since = now  # when something was said of it last
        self.rests = 0  # how often nothing but a count was said since the line itself
        self.count = 0  # how many came after that
        self.last = ""

    @property
    def due(self) -> float:
        """When the count is."""
        return self.since + REST_SECONDS[min(self.rests, len(REST_SECONDS) - 1)]


class Repeats:
    """Of one log."""

    def __init__(self, clock: Clock, max_kinds: int = MAX_KINDS) -> None:
        self._clock = clock
        self._max_kinds = max_kinds
        self._kinds: dict[str, _Kind] = {}

    def add(self, line: str, name: str = "") -> str:
        """The line, if it is to be said now; "" if it has been counted. `name` is that of its kind,
        if it has one."""
        line = line[:MAX_LINE]
        if line.startswith(AGAIN):
            return line
        now = self._clock.now()
        name = name or _VARIABLE.sub("#", line)
        if name not in self._kinds and len(self._kinds) >= self._max_kinds:
            self._forget(now)
            if len(self._kinds) >= self._max_kinds:
                name = _OTHERS
        kind = self._kinds.get(name)
        if kind is None or _is_over(kind, now):
            self._kinds[name] = _Kind(now)
            return line
        kind.count += 1
        kind.last = line
        return ""

    def due(self, *, at_the_end: bool = False) -> list[str]:
        """The counts that are to be said now, or all of them."""
        now = self._clock.now()
        lines = []
        for name, kind in self._kinds.items():
            if kind.count and (at_the_end or now >= kind.due):
                seconds = max(now - kind.since, 1)
                is_other = " (or of other kinds), the last" if name == _OTHERS else ""
                last = kind.last.removeprefix("zcache: ")
                lines.append(f"{AGAIN}, {_times(kind.count)} in {seconds:.0f} s{is_other}: {last}")
                kind.since, kind.count = now, 0
                kind.rests += 1
        return lines

    def seconds_until_due(self) -> float | None:
        """Until the next count is; None: there is nothing to be said."""
        dues = [kind.due for kind in self._kinds.values() if kind.count]
        return max(min(dues) - self._clock.now(), 0.0) if dues else None

    def _forget(self, now: float) -> None:
        """What has not come for long."""
        self._kinds = {name: kind for name, kind in self._kinds.items() if not _is_over(kind, now)}


def _is_over(kind: _Kind, now: float) -> bool:
    return not kind.count and now - kind.since > REST_SECONDS[-1]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
