"""A server's parameters: `key=value` words to one frozen `Config`.

Every refusal is one line: the key, what was given, what is wrong with it, and what may be given.

`python -m zcache.server.config key=value…` says it, and does nothing else: how swap-up tries
parameters before it starts anything.
"""

import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from zcache.allocators.choice import ALLOCATORS, DEFAULT_ALLOCATOR
from zcache.errors import BadInput, ZcacheError, repeatable
from zcache.image.image import is_image, read_header
from zcache.image.signs import DEVICE_EXPORT
from zcache.linux import group_limits
from zcache.linux.group_limits import Room
from zcache.page_loop.choice import check as check_page_loop
from zcache.pages.codec import LZ4, Codec, parse_codec
from zcache.pages.entry import PAGE_BYTES
from zcache.parameters import DEFAULTS, FOR_PEOPLE, KEYS, parse_choice
from zcache.server.capacity import MAX_SIZE_BYTES, budgets, capacity
from zcache.sizes import parse_size
from zcache.store.admission import ADMIT

HARDENING: Final = ("require", "warn", "off")

#: The swap device's name beside clean exports.
DEVICE_NAME: Final = "device"

#: Names that no clean export may have: what a client gets that asks for none, and the device's.
RESERVED: Final = ("", DEVICE_NAME, DEVICE_EXPORT)

#: How many clean exports there can be: each holds a descriptor.
MAX_CLEAN: Final = 100

#: How many engines: what is asked of them one after the other is to have an end.
MAX_REMOTE: Final = 16
_CLEAN_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class CleanExport(NamedTuple):
    """A disk to be served beside the device, as `clean=` names it."""

    name: str
    path: Path
    read_only: bool

    def __str__(self) -> str:
        return f"{self.name}:{self.path}{':ro' if self.read_only else ''}"


class Config(NamedTuple):
    """What a server is to do. Sizes are bytes and whole pages."""

    size_bytes: int
    min_budget_bytes: int
    budget_bytes: int  # that it can become
    backing: Path | None
    remote: tuple[str, ...]
    remote_bytes: int  # of frames that engines may hold
    remote_copies: int
    encrypt: bool
    codec: Codec
    allocator: str
    remark: str  # why it is not the default one, if nobody asked for another
    recompress: Codec | None
    clean: tuple[CleanExport, ...]
    admit: str
    overcommit: bool
    force: bool
    control: Path | None
    image: int | None
    standby: int | None
    hardening: str

    @property
    def is_succession(self) -> bool:
        """Whether there was a server before, whose pages are to be taken over."""
        return self.image is not None and os.fstat(self.image).st_size > 0

    @property
    def frame_bytes(self) -> int:
        """Of the allocator."""
        return ALLOCATORS[self.allocator].frame_bytes

    @property
    def min_budget_frames(self) -> int:
        """How many fit in the budget at least."""
        return self.min_budget_bytes // self.frame_bytes

    @property
    def budget_frames(self) -> int:
        """How many fit in the budget at most."""
        return self.budget_bytes // self.frame_bytes

    @property
    def needed_frames(self) -> int:
        """For every page of the device, in RAM and below, even if nothing compresses."""
        return ALLOCATORS[self.allocator].frames_for(self.size_bytes // PAGE_BYTES)

    @property
    def below_bytes(self) -> int:
        """What of them must be on the backing."""
        return max(self.needed_frames - self.min_budget_frames - self.remote_frames, 0) * self.frame_bytes

    @property
    def remote_frames(self) -> int:
        """How many engines hold for themselves: two copies of each, and none below."""
        return self.remote_bytes // self.frame_bytes if self.remote_copies == 2 else 0


def parse_config(
    words: Iterable[tuple[str, str]], rooms: Callable[[], Iterable[Room]] = lambda: group_limits.rooms()
) -> Config:
    """Raises `BadInput` for the first thing that is wrong; `EnvironmentProblem` for an image that
    cannot be read, or a page loop that cannot be had.

    `rooms` is asked what control groups leave, where that matters: for a share of RAM."""
    check_page_loop()
    given, clean, remote = _sorted_out(words)

    def chosen(key: str, choices: Sequence[str]) -> str:
        return parse_choice(key, given.get(key, DEFAULTS[key]), choices)

    size_bytes = parse_size("size", given["size"], KEYS["size"])
    image = _parse_descriptor("image", given.get("image"), is_image)
    before = read_header(image) if image is not None and os.fstat(image).st_size else None
    _check_urls(remote, is_successor=before is not None)
    budget_bytes = budgets(given["budget"], image, before, rooms)
    backing = _absolute("backing", given["backing"]) if given.get("backing") else None
    for export in clean:
        if backing and _is_same(export.path, backing):
            raise BadInput(f"clean={export}: that is the backing; give a disk of its own")
    overcommit = chosen("overcommit", ("yes", "no")) == "yes"
    remote_bytes, remote_copies = _parse_remote(given, remote, backing)
    if size_bytes > MAX_SIZE_BYTES:
        raise BadInput(f"size={given['size']}: more than frames can be numbered for; give at most 4T")
    if "backing" in given and backing is None:
        raise BadInput("backing=: empty; give a path, or leave the parameter away")
    least_bytes, most_bytes, allocator, lacking = capacity(
        given,
        size_bytes,
        budget_bytes,
        backing,
        before,
        overcommit=overcommit,
        has_clean=bool(clean),
        remote_bytes=remote_bytes if remote_copies == 2 else 0,
    )
    leaves = bool(backing or remote)
    encrypt = parse_choice("encrypt", given.get("encrypt", "yes" if leaves else "no"), ("yes", "no")) == "yes"
    if encrypt and not leaves:
        raise BadInput("encrypt=yes: without a backing nothing leaves RAM; give backing=PATH, or leave encrypt away")
    codec = parse_codec(given.get("codec", DEFAULTS["codec"]))
    return Config(
        size_bytes=size_bytes,
        min_budget_bytes=least_bytes,
        budget_bytes=most_bytes,
        backing=backing,
        remote=tuple(remote),
        remote_bytes=remote_bytes,
        remote_copies=remote_copies,
        encrypt=encrypt,
        codec=codec,
        allocator=allocator,
        remark=f"allocator={allocator}: for {DEFAULT_ALLOCATOR}, which is denser, {lacking}" if lacking else "",
        recompress=_parse_recompress(given.get("recompress", DEFAULTS["recompress"]), codec, allocator, lacking),
        clean=tuple(clean),
        admit=chosen("admit", ADMIT),
        overcommit=overcommit,
        force=chosen("force", ("yes", "no")) == "yes",
        control=_parse_control(given.get("control")),
        image=image,
        standby=_parse_descriptor("standby", given.get("standby"), _is_socket),
        hardening=chosen("hardening", HARDENING),
    )


def _sorted_out(words: Iterable[tuple[str, str]]) -> tuple[dict[str, str], list[CleanExport], list[str]]:
    """What is given for each key; and the clean exports and the engines, of which there may be
    many."""
    given: dict[str, str] = {}
    clean: list[CleanExport] = []
    remote: list[str] = []
    for key, value in words:
        if not (key + value).isprintable():
            word = f"{_shown(key)}={_shown(repeatable(value))}"
            raise BadInput(f"{word}: holds a character that cannot be printed; leave it away")
        if key not in KEYS:
            raise BadInput(f"{key}={repeatable(value)}: unknown parameter; give {', '.join(FOR_PEOPLE)}")
        if key == "clean":
            clean.append(_parse_clean(value, clean))
            continue
        if key == "remote":
            remote.append(value)
            continue
        if key in given:
            raise BadInput(f"{key}={value}: given twice (first as {given[key]!r}); give it once")
        given[key] = value
    for key in ("size", "budget"):
        if key not in given:
            raise BadInput(f"{key}=: missing; give {KEYS[key]}")
    return given, clean, remote


def _check_urls(texts: Sequence[str], is_successor: bool) -> None:
    """Of engines, as they were given. Raises `BadInput`, without a password in it."""
    for count, text in enumerate(texts):
        from zcache.remote.url import parse_url  # nothing of it is loaded where there are no engines

        url = parse_url(text, is_successor)
        if text in texts[:count]:
            raise BadInput(f"remote={url.name}: given twice; give each engine once")
        if count == MAX_REMOTE:
            raise BadInput(f"remote={url.name}: more than {MAX_REMOTE} of them; give fewer")


def _parse_remote(given: dict[str, str], remote: Sequence[str], backing: Path | None) -> tuple[int, int]:
    """Bytes of frames that engines may hold, and how many copies of each."""
    copies = int(parse_choice("remote_copies", given.get("remote_copies", DEFAULTS["remote_copies"]), ("1", "2")))
    if not remote:
        if "remote_budget" in given:
            raise BadInput(
                f"remote_budget={given['remote_budget']}: there is no engine; give remote=URL, or leave it away"
            )
        return 0, copies
    if "remote_budget" not in given:
        raise BadInput(f"remote_budget=: missing; give {KEYS['remote_budget']}")
    if copies == 1 and backing is None:
        raise BadInput(
            "remote_copies=1: one copy is lost with its engine, so each frame has to be on a backing, too; "
            "give backing=PATH, or remote_copies=2 and two engines"
        )
    remote_bytes = parse_size("remote_budget", given["remote_budget"], KEYS["remote_budget"])
    if remote_bytes > MAX_SIZE_BYTES:
        raise BadInput(f"remote_budget={given['remote_budget']}: more than frames can be numbered for; give at most 4T")
    return remote_bytes, copies


def _shown(text: str) -> str:
    """On one line, whatever it is."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path == other or path.samefile(other)
    except OSError:  # one is not there
        return False


def _absolute(key: str, text: str) -> Path:
    try:
        return Path(text).absolute()
    except OSError:
        raise BadInput(f"{key}={text}: the current folder is gone; give a path that begins with /") from None


def _parse_clean(text: str, others: Sequence[CleanExport]) -> CleanExport:
    name, _, rest = text.partition(":")
    read_only = rest.endswith(":ro")
    path = rest.removesuffix(":ro")
    if not path:
        raise BadInput(f"clean={text}: no path; give NAME:PATH or NAME:PATH:ro")
    if not _CLEAN_NAME.fullmatch(name) or name in RESERVED:
        raise BadInput(
            f"clean={text}: {name!r} cannot be an export's name; give letters, digits, dots, dashes and underscores, "
            f"64 at most, and not {' or '.join(filter(None, RESERVED))}"
        )
    if name in {other.name for other in others}:
        raise BadInput(f"clean={text}: there are two exports called {name}; give each a name of its own")
    if len(others) == MAX_CLEAN:
        raise BadInput(f"clean={text}: more than {MAX_CLEAN} of them; give fewer")
    return CleanExport(name, _absolute("clean", path), read_only)


def _parse_recompress(text: str, codec: Codec, allocator: str, lacking: str) -> Codec | None:
    if text == "off":
        return None
    if not text.startswith("zstd"):
        raise BadInput(f"recompress={text}: no such choice; give zstd, zstd:LEVEL or off")
    if allocator != "log":
        advice = f"for allocator=log {lacking}" if lacking else "give allocator=log"
        raise BadInput(f"recompress={text}: gains nothing with allocator={allocator}; {advice}, or recompress=off")
    if codec.id != LZ4:
        raise BadInput(f"recompress={text}: only what lz4 has compressed is; give codec=lz4, or recompress=off")
    try:
        return parse_codec(text)
    except BadInput:
        raise BadInput(f"recompress={text}: no such level; give zstd, zstd:LEVEL (-7 to 19) or off") from None


def _parse_descriptor(key: str, text: str | None, is_kind: Callable[[int], bool]) -> int | None:
    if text is None:
        return None
    descriptor = int(text) if re.fullmatch("[0-9]{1,9}", text, re.ASCII) else -1
    try:
        if descriptor > 2 and is_kind(descriptor):
            return descriptor
    except OSError:
        pass
    raise BadInput(f"{key}={text}: not a {KEYS[key].partition(';')[0]}; leave it to swap-up to give one")


def _is_socket(descriptor: int) -> bool:
    return stat.S_ISSOCK(os.fstat(descriptor).st_mode)


def _parse_control(text: str | None) -> Path | None:
    if text is None:
        return None
    path = _absolute("control", text)
    if len(os.fsencode(path)) > 107:
        raise BadInput(f"control={text}: too long for a Unix socket; give a path of at most 107 bytes")
    try:
        if not text or not path.parent.is_dir():
            raise BadInput(f"control={text}: its folder does not exist; give a path in an existing folder")
        if path.exists() and not path.is_socket():
            raise BadInput(f"control={text}: something else is there; give a path that is free")
    except OSError as error:
        raise BadInput(f"control={text}: {error.strerror}; give a path in a folder that can be written") from None
    return path


def refusal(words: Iterable[str]) -> str:
    """What is wrong with them, "" if nothing is, for a server in whatever groups: swap-up's own say
    nothing of it."""
    try:
        parse_config([(key, value) for key, _, value in (word.partition("=") for word in words)], rooms=tuple)
    except ZcacheError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(refusal(sys.argv[1:]) or 0)
