"""`zcache remote`: who has how much at the engines that `remote=` names, and what an operator does
about it.

It asks the engines themselves, from any machine that may log in there; no server is asked. redis-py
is for this alone: the extra `remote`.

A person decides that an instance is dead: a machine that is asleep says as little as one that is
gone. What can be known is that one is alive: it was seen lately, or, as clocks differ between
machines, its account changes while it is watched.
"""

import argparse
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zcache.client import remote_tables
from zcache.client.remote_accounts import Instance, find, remove
from zcache.client.remote_engines import Engines
from zcache.errors import BadInput, EnvironmentProblem, ZcacheError
from zcache.remote.accounts import NAME, OWNER, ROOT, prefix_of, quota_key
from zcache.remote.url import Url, parse_url, read_password
from zcache.sizes import human, parse_size

#: What a machine's account may do: what `zcache.remote` asks of an engine; and HGETALL, which is
#: for `zcache remote status`. CONFIG GET is not among it: it shows the passwords of others
#: (`requirepass`), and all that a server does without it is to warn less. AUTH is everybody's.
COMMANDS: Final = ("cluster|info", "cluster|slots", "exists", "get", "hgetall", "hset", "info", "scan", "set", "unlink")
#: What an operator's account may do: what `zcache remote` asks.
OPERATOR_COMMANDS: Final = ("cluster|slots", "get", "hgetall", "info", "memory|usage", "scan", "set", "unlink")
#: For `gc` to see that an account does not change: two heartbeats (`zcache.remote.mender`), and a
#: second.
WATCH_SECONDS: Final = 5.0

_TO_BE_GIVEN: Final = ">PASSWORD"


def main(words: Sequence[str]) -> int:
    """Exit status 0; 1: not confirmed, so nothing was done; 2: refused, or not all of the engines
    answer."""
    arguments = _parse(words)
    try:
        if arguments.action == "acl":
            print(acl_rule(arguments.owner, _password_word(arguments.password_file), arguments.operator))
            return 0
        urls = _urls(arguments.remote)
        if arguments.action == "quota":
            return _quota(urls, arguments.owner, arguments.size)
        if arguments.action == "gc":
            return _gc(urls, arguments.name, is_sure=arguments.yes, is_forced=arguments.force)
        return _status(urls, arguments.json)
    except ZcacheError as error:
        print(f"zcache: {error}", file=sys.stderr)
        return 2


def acl_rule(owner: str, secret: str = _TO_BE_GIVEN, is_operator: bool = False) -> str:
    """What has an engine make an account for a machine, or for an operator, or change it to that.
    `secret`: a password, as a rule has it."""
    keys = f"~{prefix_of(_checked_owner(owner), '*').decode().removesuffix(':')} %R~{quota_key(owner).decode()}"
    commands = OPERATOR_COMMANDS if is_operator else COMMANDS
    rights = [f"~{ROOT.decode()}*" if is_operator else keys, *(f"+{command}" for command in commands)]
    return f"ACL SETUSER {owner} reset on {secret} {' '.join(rights)}"


def _password_word(path: Path | None) -> str:
    """Of a rule: the hash of what is in the file, as the engine keeps it."""
    if path is None:
        return _TO_BE_GIVEN
    return f"#{hashlib.sha256(read_password(str(path)).encode(errors='surrogateescape')).hexdigest()}"


def _parse(words: Sequence[str]) -> argparse.Namespace:
    text = "Who has how much at the engines that hold pages (remote=), whoever has died left there, and limits."
    parser = argparse.ArgumentParser(prog="zcache remote", description=text)
    actions = parser.add_subparsers(dest="action", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        if name != "acl":
            text = "an engine, or one of a Cluster's nodes, as for remote=; may be repeated"
            action.add_argument("--remote", metavar="URL", action="append", required=True, help=text)
        return action

    status = add("status", "who has how much, and when each was seen last")
    status.add_argument("--json", action="store_true", help="every figure, as JSON")
    gc = add("gc", "remove all that a dead instance has left, at all of these engines")
    gc.add_argument("name", metavar="NAME", help="as `zcache remote status` shows it")
    gc.add_argument("--yes", action="store_true", help="do not ask whether it is dead")
    gc.add_argument("--force", action="store_true", help="even if it is alive: its pages are lost")
    quota = add("quota", "limit what an owner may have at each of these engines, or in a Cluster as a whole")
    quota.add_argument("owner", metavar="OWNER", help="the user that the machine's URL names; without one, default")
    quota.add_argument("size", metavar="SIZE", help="such as 512M, or none; machines keep to it within seconds")
    acl = add("acl", "print the rule by which an engine lets a machine have its own keys, and no others")
    acl.add_argument("owner", metavar="OWNER", help="the user that the machine's URL names")
    text = "a file with the password: the rule has its hash. Without it, put the password where PASSWORD stands"
    acl.add_argument("--password-file", metavar="PATH", type=Path, help=text)
    text = "for a person who uses zcache remote: all keys of all machines, and their quotas"
    acl.add_argument("--operator", action="store_true", help=text)
    return parser.parse_args(words)


def _urls(texts: Sequence[str]) -> list[Url]:
    urls = [parse_url(text) for text in texts]
    for url in urls:
        for warning in url.warnings:
            print(f"zcache: warning: remote={url.name}: {warning}", file=sys.stderr)
    return urls


def _all_engines(urls: Sequence[Url]) -> Engines:
    engines = Engines(urls)
    if engines.silent:
        engines.close()
        raise EnvironmentProblem(f"{engines.silent[0]}; nothing was changed")
    return engines


# -- status
# -------------------------------------------------------------------------------------------------


def _status(urls: Sequence[Url], is_json: bool) -> int:
    with contextlib.closing(Engines(urls)) as engines:
        instances: list[Instance] = []
        quotas: dict[str, dict[str, int]] = {}
        hidden: set[str] = set()
        for engine in list(engines.all):
            try:
                found = find(engine)
            except EnvironmentProblem as error:
                engines.silent.append(str(error))
                continue
            instances += found.instances
            hidden |= found.hidden
            quotas.setdefault(engine.place, {}).update(found.quotas)
        answer = remote_tables.answer(engines.all, instances, quotas, len(hidden))
        silent = engines.silent
    if is_json:
        print(json.dumps(answer | {"silent": silent}, indent=2))
    elif answer["engines"]:
        remote_tables.print_answer(answer)
    for line in silent:
        print(f"zcache: {line}", file=sys.stderr)
    return 2 if silent else 0


# -- gc
# -------------------------------------------------------------------------------------------------


def _gc(urls: Sequence[Url], name: str, *, is_sure: bool, is_forced: bool) -> int:
    if not NAME.fullmatch(name):
        raise BadInput(f"{name!a}: not a name; give one of those that zcache remote status shows")
    with contextlib.closing(_all_engines(urls)) as engines:
        instances = _of_name(engines, name)
        if not instances:
            raise BadInput(f"{name}: nothing of that name is there, or may be read; see zcache remote status")
        watched_since = time.monotonic()
        if not is_forced and any(instance.state == "live" for instance in instances):
            raise _alive(instances, "it was seen within the last minute")
        if not is_sure and not _is_confirmed(instances):
            print("nothing was removed")
            return 1
        if not is_forced:
            time.sleep(max(watched_since + WATCH_SECONDS - time.monotonic(), 0))
            if _signs(instances) != _signs(_of_name(engines, name)):
                raise _alive(instances, "its account has changed just now; its clock differs from this machine's")
        count = sum(map(remove, instances))
    print(f"removed {name}: {count} copies")
    return 0


def _of_name(engines: Engines, name: str) -> list[Instance]:
    return [instance for engine in engines.all for instance in find(engine, name).instances]


def _signs(instances: list[Instance]) -> set[tuple[str, str, int | None]]:
    """What changes while it lives."""
    return {(each.engine.name, each.owner, each.seen) for each in instances}


def _alive(instances: list[Instance], why: str) -> BadInput:
    return BadInput(f"{_described(instances)}: {why}, so it is alive; zcache down there, or --force to lose its pages")


def _described(instances: list[Instance]) -> str:
    latest = max(instances, key=lambda each: each.seen or 0)
    return f"{latest.name} ({latest.owner}, host {latest.host or 'unknown'})"


def _is_confirmed(instances: list[Instance]) -> bool:
    latest = max(instances, key=lambda each: each.seen or 0)
    frames, where = sum(each.frames for each in instances), ", ".join(each.engine.name for each in instances)
    known_bytes = sum(each.size_bytes or 0 for each in instances)
    seen = "never seen" if latest.seen is None else f"last seen {remote_tables.age(latest.age_seconds)} ago"
    print(f"{_described(instances)}: {frames} copies, {human(known_bytes)}, at {where}; {seen}.")
    print("Remove all of it? If that swap is only asleep, its pages are lost. [y/N]", end=" ", flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        print()
        return False


# -- quotas
# -------------------------------------------------------------------------------------------------


def _quota(urls: Sequence[Url], owner: str, size: str) -> int:
    key = quota_key(_checked_owner(owner))
    size_bytes = None if size == "none" else parse_size("quota", size, "none, or bytes with a suffix such as 512M")
    with contextlib.closing(_all_engines(urls)) as engines:
        for engine in engines.with_key(key):
            if size_bytes is None:
                engine.ask("UNLINK", key)
            else:
                engine.ask("SET", key, size_bytes)
            print(f"{owner} at {engine.place}: {'no quota' if size_bytes is None else human(size_bytes)}")
    return 0


def _checked_owner(owner: str) -> str:
    if not OWNER.fullmatch(owner) or owner == "quota":  # whose keys would be all quotas
        raise BadInput(f"{owner!a}: no owner; give a user, of letters, digits and . _ @ + -, and not quota")
    return owner
