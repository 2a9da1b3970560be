"""nbdkit's own options, as they are given to scripts/serve: where they end, what is given with
each, and those that do not go with this server, or with this nbdkit.

A server gives up the file system and all programs before its first client comes
(`zcache.hardening.privileges`). What nbdkit opens later would be accepted at the start, and then
fail for each client. The file of --tls-psk stays readable (`Server`); certificates are read at the
start (both tried). Of the filters of nbdkit 1.32 and 1.42, those below were found by reading their
sources.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zcache.errors import BadInput
from zcache.linux.files import why_not_opened

#: Those whose argument is a word of its own.
_WITH_ARGUMENT: Final = frozenset(
    """-D -e -g -i -p -P -t -U -u --debug --export --export-name --exportname --filter --group --ip-addr --ipaddr
    --log --mask-handshake --pid-file --pidfile --port --run --selinux-label --threads --tls --tls-certificates
    --tls-psk --unix --user""".split()  # noqa: SIM905 (a list of 30 would be 30 lines)
)

#: Filters that make a file, or run a program, when a client comes.
_LATE_FILTERS: Final = frozenset({"bzip2", "gzip", "tar"})
#: And parameters by which others do.
_LATE_PARAMETERS: Final = (
    "connection-rate-file=",
    "exit-when-script=",
    "exportdesc=script:",
    "logscript=",
    "rate-file=",
)

#: A variable that tells the plugin to have last words said, because this nbdkit may abort.
LAST_WORDS: Final = "ZCACHE_LAST_WORDS"

#: nbdkit aborts when a client goes away while two threads of its connection write to it: from
#: commit bf8653b3 (1.32.4; daef505e in 1.33) to 9d82aa4f (1.33.10).
_ABORTS_SINCE: Final = (1, 32, 4)
_ABORTS_UNTIL: Final = (1, 33, 10)
_VERSION_SECONDS: Final = 30


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """nbdkit's options, and the parameters after them."""
    position = 0
    while position < len(words) and words[position].startswith("-"):
        position += 2 if words[position] in _WITH_ARGUMENT else 1
    return words[:position], words[position:]


def arguments_of(options: list[str], *names: str) -> list[str]:
    """What is given with an option, under any of its names, each time."""
    found = []
    for position, word in enumerate(options):
        name, equals, argument = word.partition("=")
        short = next((name for name in names if len(name) == 2 and word.startswith(name) and word != name), "")
        if word in names and position + 1 < len(options):
            found.append(options[position + 1])
        elif name in names and equals:
            found.append(argument)
        elif short and not word.startswith("--"):
            found.append(word.removeprefix(short))
    return found


def refuse_what_opens_later(options: list[str], parameters: list[str]) -> None:
    """Raises `BadInput`."""
    if "hardening=off" in parameters:
        return
    why = "opens a file, or runs a program, when a client comes, and the server cannot do that any more by then"
    for name in arguments_of(options, "--filter"):
        if name in _LATE_FILTERS:
            raise BadInput(f"--filter={name}: {why}; leave it away, or give hardening=off")
    for word in parameters:
        if word.startswith(_LATE_PARAMETERS):
            raise BadInput(f"{word}: {why}; leave it away, or give hardening=off")


def refuse_no_keys(options: list[str]) -> None:
    """nbdkit takes a file with --tls-psk as it comes, and opens it when a client does, who is then
    refused. Raises `BadInput` if it cannot be read, or holds nothing."""
    for text in arguments_of(options, "--tls-psk"):
        path = Path(text)
        try:
            if path.exists() and not path.is_file():
                raise BadInput(f"--tls-psk={text}: not a regular file; give one that psktool(1) has made")
            if not path.read_bytes().strip():
                raise BadInput(f"--tls-psk={text}: no key is in it; give a file that psktool(1) has made")
        except OSError as error:
            raise BadInput(f"--tls-psk={text}: {why_not_opened(error)}; give a file of keys") from None


def warnings_of(options: list[str], version: str | None = None) -> Iterator[str]:
    """A line for each option that is dangerous. `version` is nbdkit's; None: it is asked."""
    threads = arguments_of(options, "-t", "--threads")
    if threads and threads[-1] != "1":
        version = _nbdkit_version() if version is None else version
        numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
        if _ABORTS_SINCE <= numbers < _ABORTS_UNTIL:
            yield (
                f"-t {threads[-1]}: {version} aborts when a client goes away before it has taken its replies, "
                "and all that the server holds is lost; give -t 1 (the default), or nbdkit 1.34 or newer"
            )
    if "syslog" in arguments_of(options, "--log"):
        yield (
            "--log=syslog: NOT safe to swap to itself: a failing request waits for the syslog daemon, which may be "
            "swapped out; leave it away"
        )


def _nbdkit_version() -> str:
    """`nbdkit 1.32.5`; "" if it does not say."""
    import subprocess  # here, for a server loads this module, too

    try:
        done = subprocess.run(
            ["nbdkit", "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
