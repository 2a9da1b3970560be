"""`nbdkit`, for the suites' scripts: zcache in the place of its memory plugin, and the real one for
all others.

    nbdkit [OPTION…] memory [size=]SIZE [OPTION…] [FILTER'S PARAMETER…]
    nbdkit [OPTION…] --filter=cow pattern [size=]SIZE --run COMMAND

As nbdkit does, it goes to the background unless something says otherwise. The second is how
libnbd's clients get a writable disk that holds something: zcache is filled with the pattern first,
and needs no filter to be writable.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from nbd_plugin.nbdkit_options import arguments_of, split_words
from nbd_plugin.serve import names_a_place
from tests.suites import serving

_SIZE: Final = re.compile(r"([0-9]+)([bskmgtpe]?)", re.IGNORECASE)
_UNITS: Final = {"": 1, "b": 1, "s": 512, **{suffix: 1 << 10 * n for n, suffix in enumerate("kmgtpe", 1)}}
#: With these it stays in the foreground, or only tells something of itself.
_FOREGROUND: Final = ("-f", "--foreground", "--no-fork", "--run", "-s", "--single", "--dump-", "--help", "--version")
_TELLS: Final = ("--dump-", "--help", "--version")
_START_SECONDS: Final = 30


def parse(words: list[str]) -> tuple[list[str], str, list[str]]:
    """Options, which may stand anywhere, the plugin's name ("" without one), and parameters."""
    options: list[str] = []
    others: list[str] = []
    while words:
        more, words = split_words(words)
        options += more
        if words:
            others.append(words.pop(0))
    return options, others[0] if others else "", others[1:]


def parse_size(text: str) -> int | None:
    """As nbdkit reads sizes."""
    match = _SIZE.fullmatch(text)
    return int(match[1]) * _UNITS[match[2].lower()] if match else None


def disk_of(parameters: list[str]) -> tuple[int, list[str]] | str:
    """The size that the memory plugin is asked for, and the filters' parameters; or why that is not
    for zcache."""
    size_bytes = None
    rest = []
    for position, word in enumerate(parameters):
        key, equals, value = word.partition("=")
        if key == "allocator":
            return "the memory plugin's allocators"
        if (key == "size" and equals) or (position == 0 and not equals):
            size_bytes = parse_size(value or word)
        else:
            rest.append(word)
    if size_bytes is None:
        return "a size that cannot be read"
    return serving.refusal(size_bytes) or (size_bytes, rest)


def main() -> None:
    """Becomes one or the other."""
    options, plugin, parameters = parse(sys.argv[1:])
    options, plugin = _without_a_pattern(options, plugin, parameters)
    wanted = os.environ[serving.SERVER] != serving.PLAIN and plugin == "memory"
    if not wanted or any(word.startswith(_TELLS) or word == "-V" for word in options):
        serving.become_the_real("nbdkit", sys.argv[1:])
    disk = disk_of(parameters)
    if "--filter=truncate" in options:
        disk = "a size that the truncate filter makes"
    if isinstance(disk, str):
        serving.note(disk)
        serving.become_the_real("nbdkit", sys.argv[1:])
    size_bytes, rest = disk
    if not names_a_place(options):  # what nbdkit does then
        options += ["-U", "-"] if any(word.startswith("--run") for word in options) else ["-p", "10809"]
    command = serving.command(options, size_bytes, rest)
    is_activated = "LISTEN_FDS" in os.environ
    if is_activated:
        os.environ["LISTEN_PID"] = str(os.getpid())
    if is_activated or any(re.match("-[a-zA-Z]*[fs]", word) or word.startswith(_FOREGROUND) for word in options):
        serving.become(command[0], command)
    status = _go_to_the_background(command, options)
    serving.started()
    sys.exit(status)


def _without_a_pattern(options: list[str], plugin: str, parameters: list[str]) -> tuple[list[str], str]:
    """The options of a memory plugin that is filled with the pattern before the command of --run,
    if it was that."""
    place = options.index("--run") if "--run" in options else None
    if plugin != "pattern" or place is None or "--filter=cow" not in options or any("tls" in word for word in options):
        return options, plugin
    pattern = shlex.join([serving.real("nbdkit"), "--exit-with-parent", "pattern", *parameters])
    filled = [word for word in options if word != "--filter=cow"]
    place = filled.index("--run") + 1
    filled[place] = f'nbdcopy -- [ {pattern} ] "$uri" && {filled[place]}'
    return filled, "memory"


def _go_to_the_background(command: list[str], options: list[str]) -> int:
    """Returns when the server has written its pid, or listens; its exit status if it does not come
    to that."""
    signs = [Path(path) for path in arguments_of(options, "-P", "--pidfile", "--pid-file", "-U", "--unix")]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + _START_SECONDS
    while not all(sign.exists() for sign in signs):
        if server.poll() is not None or time.monotonic() > deadline:
            return server.poll() or 1
        time.sleep(0.02)
    return 0


if __name__ == "__main__":
    main()
