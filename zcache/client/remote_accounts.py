"""Whose keys there are at engines: found by listing them, so that those of whom nothing else is
known are found, too.

An account (`zcache.remote.accounts`) says who an instance is, and when it was seen last, by its own
machine's clock. Frames are counted; what one takes is what the account says, or the engine of one.
What the account that asks may not read is left out, and counted.

Cost: one SCAN of all keys, a batch at a time; other clients are served in between.
"""

import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from zcache.client.remote_engines import Engine, NotAllowed, OtherKind
from zcache.remote.accounts import NAME, OWNER, ROOT, quota_key
from zcache.remote.peer import number_of, shown

#: Not seen for so long is silent: a machine says that it is there every two seconds.
SILENT_SECONDS: Final = 60
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_LOOKS: Final = OWNER.pattern.encode(), NAME.pattern.encode()
_KEY: Final = re.compile(rb"zcache:(%b):(%b):(\{[^}]*\}:)?(?:word|account|([0-9]+:[0-9]+))" % _LOOKS)
_QUOTA: Final = re.compile(rb"zcache:quota:(%b)" % _LOOKS[0])


class Lane(NamedTuple):
    """What the keys of an instance at one engine begin with. In a Cluster it may have several
    there."""

    owner: str
    name: str
    prefix: bytes


class Instance(NamedTuple):
    """A swap, and what it has at one engine. None: not known; for a limit, that there is none."""

    engine: Engine
    owner: str
    name: str
    prefixes: tuple[bytes, ...]
    host: str | None
    version: str | None
    seen: int | None
    frames: int
    size_bytes: int | None
    limit_bytes: int | None

    @property
    def age_seconds(self) -> float | None:
        """Since it was seen; a clock that is ahead of ours has seen it now."""
        return None if self.seen is None else max(time.time() - self.seen, 0.0)

    @property
    def state(self) -> str:
        age_seconds = self.age_seconds
        return "no account" if age_seconds is None else "silent" if age_seconds > SILENT_SECONDS else "live"


class Found(NamedTuple):
    """At one engine: instances, and quotas in bytes, by owner; names of those that may not be
    read."""

    instances: list[Instance]
    quotas: dict[str, int]
    hidden: set[str]


def find(engine: Engine, name: str = "*") -> Found:
    """All, or those of one name."""
    counts: dict[Lane, int] = defaultdict(int)
    samples: dict[Lane, bytes] = {}
    owners_with_quota: set[str] = set()
    for keys in engine.keys(ROOT + b"*" if name == "*" else ROOT + f"*:{name}:*".encode()):
        for key in keys:
            if quota := _QUOTA.fullmatch(key):
                owners_with_quota.add(quota[1].decode())
            elif (match := _KEY.fullmatch(key)) and name in ("*", match[2].decode()):
                lane = Lane(match[1].decode(), match[2].decode(), key[: match.end(3) if match[3] else match.end(2) + 1])
                counts[lane] += match[4] is not None
                if match[4] is not None:
                    samples[lane] = key
    parts: dict[tuple[str, str], list[Instance]] = {}
    hidden = set()
    for lane, frames in counts.items():
        try:
            part = _instance(engine, lane, frames, samples.get(lane))
        except NotAllowed:
            hidden.add(lane.name)
            continue
        parts.setdefault((lane.owner, lane.name), []).append(part)
    return Found([_together(each) for each in parts.values()], dict(_quotas(engine, owners_with_quota)), hidden)


def remove(instance: Instance) -> int:
    """All of its keys, first the frames: whoever is interrupted finds the account still there. How
    many frames there were."""
    count = 0
    for prefix in instance.prefixes:
        last = [prefix + b"word", prefix + b"account"]
        # In one slot of a Cluster, as they have one tag.
        for keys in instance.engine.keys(prefix + b"*"):
            if frames := [key for key in keys if key not in last]:
                count += instance.engine.ask("UNLINK", *frames)
        for key in last:
            instance.engine.ask("UNLINK", key)
    return count


def _instance(engine: Engine, lane: Lane, frames: int, sample: bytes | None) -> Instance:
    """Raises `NotAllowed`. An account is what its machine has written, whatever that is."""
    said: dict[bytes, bytes] = {}
    with contextlib.suppress(OtherKind):
        said = engine.ask("HGETALL", lane.prefix + b"account")
    account = {field: shown(value.decode(errors="replace")) for field, value in said.items()}
    numbers = {field: int(value) for field, value in account.items() if _NUMBER.fullmatch(value)}
    held, held_bytes = numbers.get(b"frames", 0), numbers.get(b"bytes", 0)
    size_bytes: int | None = 0
    if frames and held > 0 and held_bytes >= 0:
        size_bytes = frames * held_bytes // held
    elif sample:
        size_bytes = _size_bytes(engine, sample, frames)
    return Instance(
        engine,
        lane.owner,
        lane.name,
        (lane.prefix,),
        account.get(b"host"),
        account.get(b"version"),
        numbers.get(b"seen"),
        frames,
        size_bytes,
        None if (limit := numbers.get(b"limit_bytes", -1)) < 0 else limit,
    )


def _size_bytes(engine: Engine, sample: bytes, frames: int) -> int | None:
    try:
        one_bytes = engine.ask("MEMORY", "USAGE", sample)
    except NotAllowed:
        return None
    return None if one_bytes is None else one_bytes * frames


def _together(parts: list[Instance]) -> Instance:
    """Of one name at one engine: a Cluster's node may have several lanes of it."""
    latest = max(parts, key=lambda part: part.seen or 0)
    return latest._replace(
        prefixes=tuple(prefix for part in parts for prefix in part.prefixes),
        frames=sum(part.frames for part in parts),
        size_bytes=total(part.size_bytes for part in parts),
        limit_bytes=total(part.limit_bytes for part in parts),
    )


def total(figures: Iterable[int | None]) -> int | None:
    """None if one of them is."""
    each = list(figures)
    known = [figure for figure in each if figure is not None]
    return sum(known) if len(known) == len(each) else None


def _quotas(engine: Engine, owners: set[str]) -> Iterable[tuple[str, int]]:
    for owner in owners:
        with contextlib.suppress(NotAllowed, OtherKind):
            quota_bytes = number_of(engine.ask("GET", quota_key(owner)))
            if quota_bytes is not None:
                yield owner, quota_bytes
