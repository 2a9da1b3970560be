"""The plugin's parameters: `key=value` words to one frozen `Config`.

Every refusal is one line: the key, what was given, what is wrong with it, and what may be given.

`python -m nbd_plugin.config key=value…` says it, and does nothing else: how swap-up tries
parameters before it starts anything.
"""

import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from nbd_plugin.exports import RESERVED
from zcache.allocators.choice import ALLOCATORS, DEFAULT_ALLOCATOR, FALLBACK_ALLOCATOR
from zcache.errors import BadInput, ZcacheError
from zcache.image.image import Signs, is_image, read_header
from zcache.linux import group_limits
from zcache.linux.group_limits import Room
from zcache.pageframes.slots import budget_of
from zcache.pages.codec import LZ4, Codec, parse_codec
from zcache.pages.entry import FRAME_MASK, PAGE_BYTES
from zcache.sizes import RANGE, parse_budget, parse_size
from zcache.store.admission import ADMIT

HARDENING: Final = ("require", "warn", "off")

#: Ids for frames in RAM and below, twice over, in the 31 bits that a page-table entry has for one.
MAX_SIZE_BYTES: Final = (FRAME_MASK + 1) // 2 * PAGE_BYTES

_IS_FROM_THE_KEEPER: Final = "the keeper gives it"
KEYS: Final = {
    "size": "bytes of the device, with a suffix: 512M, 2G, 64G",
    "budget": "bytes of RAM for pageframes, with a suffix, or a share of the RAM of this machine or its control group, "
    "or a range to move in: 160M, 25%, 64M..25%",
    "backing": "path of a regular file or block device that cold frames are written to; none: RAM only",
    "encrypt": "yes (default, with a backing) or no: what is written to the backing, under a key that is in RAM only",
    "codec": "lz4 (default), lz4:ACCELERATION, zstd:LEVEL",
    "allocator": "how zpages share pageframes: log, dense, or zbud, at most two in one (default: log)",
    "recompress": "zstd, zstd:LEVEL or off (default): what lz4's pages at rest are compressed with (allocator=log)",
    "clean": "NAME:PATH or NAME:PATH:ro, any number of times: a disk image or block device, served with a cache of it",
    "admit": "reused (default) or always: which pages of clean exports are kept, those read twice, or all",
    "overcommit": "yes or no (default): may size exceed what budget and backing can surely hold",
    "force": "yes or no (default): may a backing file that holds something else be overwritten",
    "control": "path of the control socket that `zcache status` talks to; none: no such socket",
    "image": f"descriptor of a memfd that keeps the pages while the server is replaced; {_IS_FROM_THE_KEEPER}",
    "standby": f"descriptor of a socket on which the keeper says when to begin; {_IS_FROM_THE_KEEPER}",
    "hardening": "require, warn (default) or off: what to do when the server cannot be made safe to swap to itself",
}


#: How many clean exports there can be: each holds a descriptor.
MAX_CLEAN: Final = 100
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
        """What of them must be below."""
        return max(self.needed_frames - self.min_budget_frames, 0) * self.frame_bytes


def parse_config(
    words: Iterable[tuple[str, str]], rooms: Callable[[], Iterable[Room]] = lambda: group_limits.rooms()
) -> Config:
    """Raises `BadInput` for the first thing that is wrong; `EnvironmentProblem` for an image that
    cannot be read.

    `rooms` is asked what control groups leave, where that matters: for a share of RAM."""
    given: dict[str, str] = {}
    clean: list[CleanExport] = []
    for key, value in words:
        if not (key + value).isprintable():
            raise BadInput(f"{_shown(key)}={_shown(value)}: holds a character that cannot be printed; leave it away")
        if key not in KEYS:
            known = [name for name, meaning in KEYS.items() if _IS_FROM_THE_KEEPER not in meaning]
            raise BadInput(f"{key}={value}: unknown parameter; give {', '.join(known)}")
        if key == "clean":
            clean.append(_parse_clean(value, clean))
            continue
        if key in given:
            raise BadInput(f"{key}={value}: given twice (first as {given[key]!r}); give it once")
        given[key] = value
    for key in ("size", "budget"):
        if key not in given:
            raise BadInput(f"{key}=: missing; give {KEYS[key]}")

    size_bytes = parse_size("size", given["size"], KEYS["size"])
    image = _parse_descriptor("image", given.get("image"), is_image)
    before = read_header(image) if image is not None and os.fstat(image).st_size else None
    # The machine's RAM may have changed since the image was made (a balloon, hot plugging), and
    # with it what 25% are.
    if before and image is not None:
        least_bytes, budget_bytes = _budget_of(before, given["budget"], Signs(image).is_served(), rooms)
    else:
        least_bytes, budget_bytes = _parse_budget(given["budget"], rooms)
    backing = _absolute("backing", given["backing"]) if given.get("backing") else None
    for export in clean:
        if backing and _is_same(export.path, backing):
            raise BadInput(f"clean={export}: that is the backing; give a disk of its own")
    overcommit = _parse_choice("overcommit", given.get("overcommit", "no"), ("yes", "no")) == "yes"
    if size_bytes > MAX_SIZE_BYTES:
        raise BadInput(f"size={given['size']}: more than frames can be numbered for; give at most 4T")
    if "backing" in given and backing is None:
        raise BadInput("backing=: empty; give a path, or leave the parameter away")
    is_all = backing is None and not overcommit  # the budget is all that there is
    default = before["allocator"] if before else DEFAULT_ALLOCATOR
    lacking = ""
    if not before and "allocator" not in given:
        lacking = _lacking_for_the_default(size_bytes, least_bytes, backing, overcommit)
        default = FALLBACK_ALLOCATOR if lacking else default
    allocator = _parse_choice("allocator", given.get("allocator", default), tuple(ALLOCATORS))
    min_bytes, needed_bytes = _budget_range(allocator, size_bytes)
    if not before and least_bytes < min_bytes:
        raise BadInput(
            f"budget={given['budget']}: too small{f' for allocator={allocator}' if 'allocator' in given else ''}; "
            f"give at least {min_bytes >> 10}K"
        )
    if is_all and not before and needed_bytes > least_bytes:
        what = f"takes {needed_bytes} bytes with allocator={allocator} if nothing compresses, more"
        raise BadInput(
            f"size={given['size']}: {'larger' if size_bytes > least_bytes else what} than "
            f"budget={given['budget']} ({least_bytes} bytes), and no backing; "
            "give a smaller size, a larger budget, backing=PATH, or overcommit=yes"
        )
    if not before and not clean:
        budget_bytes = max(min(budget_bytes, needed_bytes), min_bytes)  # more would be locked for nothing
        least_bytes = min(least_bytes, budget_bytes)
    encrypt = _parse_choice("encrypt", given.get("encrypt", "yes" if backing else "no"), ("yes", "no")) == "yes"
    if encrypt and not backing:
        raise BadInput("encrypt=yes: without a backing nothing leaves RAM; give backing=PATH, or leave encrypt away")
    codec = parse_codec(given.get("codec", "lz4"))
    return Config(
        size_bytes=size_bytes,
        min_budget_bytes=least_bytes,
        budget_bytes=budget_bytes,
        backing=backing,
        encrypt=encrypt,
        codec=codec,
        allocator=allocator,
        remark=f"allocator={allocator}: for {DEFAULT_ALLOCATOR}, which is denser, {lacking}" if lacking else "",
        recompress=_parse_recompress(given.get("recompress", "off"), codec, allocator, lacking),
        clean=tuple(clean),
        admit=_parse_choice("admit", given.get("admit", ADMIT[0]), ADMIT),
        overcommit=overcommit,
        force=_parse_choice("force", given.get("force", "no"), ("yes", "no")) == "yes",
        control=_parse_control(given.get("control")),
        image=image,
        standby=_parse_descriptor("standby", given.get("standby"), _is_socket),
        hardening=_parse_choice("hardening", given.get("hardening", "warn"), HARDENING),
    )


def _parse_budget(text: str, rooms: Callable[[], Iterable[Room]]) -> tuple[int, int]:
    return parse_budget(text, KEYS["budget"], rooms() if "%" in text else ())


def _budget_of(
    header: dict[str, Any], text: str, is_served: bool, rooms: Callable[[], Iterable[Room]]
) -> tuple[int, int]:
    """The most is what an image was made with; the least what was said, as far as that goes, and
    can be found out."""
    most_bytes = budget_of(header["slot_count"]) * int(header["frame_bytes"])
    if RANGE not in text:
        return most_bytes, most_bytes
    if "%" in text and not is_served:  # of what, control groups say: not looked at while nobody serves (Server)
        return 0, most_bytes
    try:
        least_bytes = min(_parse_budget(text, rooms)[0], most_bytes)
    except BadInput:  # it was once accepted, and RAM has become less: what size= was promised decides
        least_bytes = 0
    return least_bytes, most_bytes


def _budget_range(allocator: str, size_bytes: int) -> tuple[int, int]:
    """The least budget that an allocator works with, and the most that it can need for a device of
    that size."""
    chosen = ALLOCATORS[allocator]
    needed_frames = chosen.frames_for(size_bytes // PAGE_BYTES)
    return chosen.min_budget_frames * chosen.frame_bytes, needed_frames * chosen.frame_bytes


def _lacking_for_the_default(size_bytes: int, budget_bytes: int, backing: Path | None, overcommit: bool) -> str:
    """What the default allocator lacks to keep its promise with what was given; "" if it can keep
    it."""
    chosen = ALLOCATORS[DEFAULT_ALLOCATOR]
    frame_bytes = chosen.frame_bytes
    least_bytes = chosen.min_budget_frames * frame_bytes
    if budget_bytes < least_bytes:
        return f"give at least budget={least_bytes >> 20}M"
    if overcommit:
        return ""
    missing_frames = chosen.frames_for(size_bytes // PAGE_BYTES) - budget_bytes // frame_bytes
    if backing:
        missing_frames -= _room_below(backing) // frame_bytes - 1  # a header
    if missing_frames <= 0:
        return ""
    missing_mib = missing_frames * frame_bytes // (1 << 20) + 1
    where = "a larger backing" if backing else "a backing, or a larger budget"
    return f"{missing_mib}M more are needed if nothing compresses; give {where}"


def _room_below(backing: Path) -> int:
    """Bytes of a device, or of a file that holds something; for a file that does not, as much as
    there is for it."""
    try:
        if not backing.exists() or not (backing.is_block_device() or backing.stat().st_size):
            file_system = os.statvfs(backing.parent)
            return file_system.f_bavail * file_system.f_frsize
        descriptor = os.open(backing, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return MAX_SIZE_BYTES  # whatever it is, opening it will say so
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    except OSError:
        return MAX_SIZE_BYTES
    finally:
        os.close(descriptor)


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


def _parse_choice(key: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise BadInput(f"{key}={text}: no such choice; give {' or '.join(choices)}")
    return text


def _parse_clean(text: str, others: Sequence[CleanExport]) -> CleanExport:
    name, _, rest = text.partition(":")
    read_only = rest.endswith(":ro")
    path = rest.removesuffix(":ro")
    if not path:
        raise BadInput(f"clean={text}: no path; give NAME:PATH or NAME:PATH:ro")
    if not _CLEAN_NAME.fullmatch(name) or name in RESERVED:
        raise BadInput(
            f"clean={text}: {name!r} cannot be an export's name; give letters, digits, dots and dashes, 64 at most, "
            f"and not {' or '.join(filter(None, RESERVED))}"
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
