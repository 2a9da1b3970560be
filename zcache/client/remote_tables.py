"""What engines hold of whom, as people read it, and as JSON has it."""

from collections.abc import Mapping, Sequence
from typing import Final, TypedDict

from zcache.client.remote_accounts import Instance, total
from zcache.client.remote_engines import Engine
from zcache.client.tables import print_table
from zcache.remote.peer import number_of
from zcache.sizes import human

#: From the largest down, with the least count that is shown in each.
_AGES: Final = (("days", 86400, 2), ("h", 3600, 2), ("min", 60, 2), ("s", 1, 0))
#: What a machine says of itself is cut short in the table: what is wider takes other columns' room.
#: Linux has no longer names.
_HOST_CHARS: Final = 64
_VERSION_CHARS: Final = 16


class EngineRow(TypedDict):
    """An engine that stands alone, or a primary; `max_bytes` 0: it has no limit."""

    engine: str
    version: str
    used_bytes: int
    max_bytes: int
    policy: str


class InstanceRow(TypedDict):
    """A swap at one engine; None: not known; of a limit or quota: there is none."""

    owner: str
    name: str
    host: str | None
    version: str | None
    state: str
    seen: int | None
    seen_seconds_ago: float | None
    frames: int
    size_bytes: int | None
    limit_bytes: int | None
    quota_bytes: int | None
    engine: str


class OwnerRow(TypedDict):
    """All that an owner has; the quota is the sum of those at each place, if each has one."""

    owner: str
    instances: int
    frames: int
    size_bytes: int | None
    quota_bytes: int | None


class Answer(TypedDict):
    """All of `zcache remote status`."""

    engines: list[EngineRow]
    instances: list[InstanceRow]
    owners: list[OwnerRow]
    hidden_instances: int  # which the account that asked may not read


def answer(
    engines: Sequence[Engine],
    instances: Sequence[Instance],
    quotas: Mapping[str, Mapping[str, int]],
    hidden_count: int,
) -> Answer:
    """`quotas`: of each place, by owner."""
    ordered = sorted(instances, key=lambda each: (each.owner, each.host or "", each.name, each.engine.name))
    owners = sorted({each.owner for each in instances}.union(*quotas.values()))
    return {
        "engines": [_engine(engine.name, engine.info) for engine in engines],
        "instances": [_instance(each, quotas) for each in ordered],
        "owners": [_owner(owner, [each for each in ordered if each.owner == owner], quotas) for owner in owners],
        "hidden_instances": hidden_count,
    }


def print_answer(answer: Answer) -> None:
    """Three tables, and what is not in them."""
    rows = [
        [row["engine"], row["version"], human(row["used_bytes"]), _size(row["max_bytes"] or None), row["policy"]]
        for row in answer["engines"]
    ]
    print_table(("ENGINE", "VERSION", "USED", "MAXMEMORY", "POLICY"), rows)
    rows = [
        [
            row["owner"],
            row["name"],
            (row["host"] or "-")[:_HOST_CHARS],
            (row["version"] or "-")[:_VERSION_CHARS],
            row["state"],
            age(row["seen_seconds_ago"]),
            str(row["frames"]),
            _size(row["size_bytes"]),
            _size(row["limit_bytes"]),
            _size(row["quota_bytes"]),
            row["engine"],
        ]
        for row in answer["instances"]
    ]
    if rows:
        print("instances, at each engine:")
        names = ("OWNER", "NAME", "HOST", "VERSION", "STATE", "SEEN", "FRAMES", "SIZE", "LIMIT", "QUOTA", "ENGINE")
        print_table(names, rows)
    if answer["owners"]:
        print("owners, at all of them:")
        rows = [
            [
                row["owner"],
                str(row["instances"]),
                str(row["frames"]),
                _size(row["size_bytes"]),
                _size(row["quota_bytes"]),
            ]
            for row in answer["owners"]
        ]
        print_table(("OWNER", "INSTANCES", "COPIES", "SIZE", "QUOTA"), rows)
    if answer["hidden_instances"]:
        print(f"not shown, as the account that asks may not read it: {answer['hidden_instances']} instances")


def age(seconds: float | None) -> str:
    """Roughly."""
    if seconds is None:
        return "-"
    word, length, _ = next(unit for unit in _AGES if seconds >= unit[1] * unit[2])
    return f"{seconds / length:.0f} {word}"


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else human(size_bytes)


def _engine(name: str, info: Mapping[str, str]) -> EngineRow:
    return {
        "engine": name,
        "version": info.get("valkey_version") or info.get("redis_version", "-"),
        "used_bytes": number_of(info.get("used_memory")) or 0,
        "max_bytes": number_of(info.get("maxmemory")) or 0,
        "policy": info.get("maxmemory_policy", "-"),
    }


def _instance(each: Instance, quotas: Mapping[str, Mapping[str, int]]) -> InstanceRow:
    return {
        "owner": each.owner,
        "name": each.name,
        "host": each.host,
        "version": each.version,
        "state": each.state,
        "seen": each.seen,
        "seen_seconds_ago": each.age_seconds,
        "frames": each.frames,
        "size_bytes": each.size_bytes,
        "limit_bytes": each.limit_bytes,
        "quota_bytes": quotas.get(each.engine.place, {}).get(each.owner),
        "engine": each.engine.name,
    }


def _owner(owner: str, instances: Sequence[Instance], quotas: Mapping[str, Mapping[str, int]]) -> OwnerRow:
    return {
        "owner": owner,
        "instances": len({each.name for each in instances}),
        "frames": sum(each.frames for each in instances),
        "size_bytes": total(each.size_bytes for each in instances),
        "quota_bytes": total(place.get(owner) for place in quotas.values()),
    }
