"""The one table of what a server can be told, at its start (`key=value`) and while it runs (`zcache
set key=value`).

The parser, the settings of a live server and the help of the commands are made from it.
"""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from zcache.errors import BadInput

_THE_KEEPERS: Final = "the keeper gives it"


class Parameter(NamedTuple):
    """One key. `meaning` goes with a refusal, too: "give …"."""

    key: str
    form: str  # what its value looks like, in a few words or capitals
    meaning: str = ""  # at the start; "": it cannot be given then
    default: str = ""  # what the parser takes if it is not given; "": nothing, or that depends
    live: str = ""  # what it means to a live server; "": it cannot be changed there
    is_keepers: bool = False  # not for people


PARAMETERS: Final = (
    Parameter("size", "SIZE", "bytes of the device, with a suffix: 512M, 2G, 64G"),
    Parameter(
        "budget",
        "SIZE or MIN..MAX",
        "bytes of RAM for pageframes, with a suffix, or a share of the RAM of this machine or its control group, "
        "or a range to move in: 160M, 25%, 64M..25%",
        live="a size, a share of the RAM of this machine or its control group, or a range, no more than at the start: "
        "160M, 25%, 64M..25%",
    ),
    Parameter(
        "backing", "PATH", "path of a regular file or block device that cold frames are written to; none: RAM only"
    ),
    Parameter(
        "remote",
        "URL",
        "a Redis or Valkey that cold frames are sent to before they are written to the backing: redis://HOST, "
        "rediss://HOST or unix:///PATH; may be given any number of times",
    ),
    Parameter("remote_budget", "SIZE", "bytes of frames that may be there, with a suffix: 1G"),
    Parameter(
        "remote_copies",
        "1 or 2",
        "how many engines have each of those frames: two, or one, with all of them on the backing, too",
        default="2",
    ),
    Parameter(
        "encrypt",
        "yes or no",
        "is what leaves RAM encrypted, under a key that is in RAM only; default: yes, with a backing or engines",
    ),
    Parameter(
        "codec", "CODEC", "what pages are compressed with: lz4, lz4:ACCELERATION, zstd or zstd:LEVEL", default="lz4"
    ),
    Parameter(
        "allocator",
        "log or zbud",
        "how zpages share pageframes: log, dense, or zbud, at most two in one; default: log, where it can keep its "
        "promise",
    ),
    Parameter(
        "recompress",
        "CODEC or off",
        "what lz4's pages at rest are compressed with once more: zstd or zstd:LEVEL (with allocator=log)",
        default="off",
    ),
    Parameter(
        "clean",
        "NAME:PATH[:ro]",
        "a disk image or block device, served with a cache of it; may be given any number of times",
    ),
    Parameter(
        "low_watermark",
        "SIZE",
        live="bytes of frames, with a suffix, or auto: fewer ready, and reclaim begins in the background",
    ),
    Parameter("high_watermark", "SIZE", live="bytes of frames, with a suffix, or auto: as many ready, and it rests"),
    Parameter("recompress_share", "SHARE", live="a share of one processor, for what can wait: 10%"),
    Parameter(
        "admit",
        "reused or always",
        "which pages of clean exports are kept: those read twice, or all",
        default="reused",
        live="which pages of clean exports are kept: those read twice, or all",
    ),
    Parameter(
        "overcommit",
        "yes or no",
        "may size exceed what budget and backing can surely hold",
        default="no",
    ),
    Parameter("force", "yes or no", "may a backing file that holds something else be overwritten", default="no"),
    Parameter("control", "PATH", "path of the control socket that `zcache status` talks to; none: no such socket"),
    Parameter(
        "image",
        "DESCRIPTOR",
        f"descriptor of a memfd that keeps the pages while the server is replaced; {_THE_KEEPERS}",
        is_keepers=True,
    ),
    Parameter(
        "standby",
        "DESCRIPTOR",
        f"descriptor of a socket on which the keeper says when to begin; {_THE_KEEPERS}",
        is_keepers=True,
    ),
    Parameter(
        "hardening",
        "require, warn or off",
        "what to do when the server cannot be made safe to swap to itself",
        default="warn",
    ),
)

#: What can be given at the start, and what it means.
KEYS: Final = {parameter.key: parameter.meaning for parameter in PARAMETERS if parameter.meaning}

#: Of those, what people may give.
FOR_PEOPLE: Final = tuple(parameter.key for parameter in PARAMETERS if parameter.meaning and not parameter.is_keepers)

#: What the parser takes for what is not given, where that is always the same.
DEFAULTS: Final = {parameter.key: parameter.default for parameter in PARAMETERS if parameter.default}

#: What can be changed in a live server, and what it means there.
LIVE_KEYS: Final = {parameter.key: parameter.live for parameter in PARAMETERS if parameter.live}


def help_text(keys: Collection[str] = FOR_PEOPLE) -> str:
    """What can be given at the start, for a command's help: a paragraph for each key, in lines of
    at most 100 columns."""
    import textwrap  # late: a server has no use for it

    lines = []
    for parameter in PARAMETERS:
        if parameter.key not in keys:
            continue
        notes = [f"default: {parameter.default}"] if parameter.default else []
        notes += ["`zcache set` changes it"] if parameter.live else []
        text = f"{parameter.meaning} ({'; '.join(notes)})" if notes else parameter.meaning
        lines.append(f"  {parameter.key}={parameter.form}")
        lines += textwrap.wrap(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def help_of_set() -> str:
    """What `zcache set` takes, in one line."""
    return ", ".join(f"{parameter.key}={parameter.form}" for parameter in PARAMETERS if parameter.live)


def parse_choice(key: str, text: str, choices: Sequence[str]) -> str:
    """One of a few words. Raises `BadInput`."""
    if text not in choices:
        raise BadInput(f"{key}={text}: no such choice; give {' or '.join(choices)}")
    return text
