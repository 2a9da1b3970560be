"""`zcache pager SOCKET size=SIZE key=value…`: a pager for several programs, in the foreground. Each
region has a limit of its own; one store, and its budget, are for all of them."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from zcache.errors import BadInput, ZcacheError
from zcache.hardening.log_pipe import say
from zcache.inherited.start import run
from zcache.linux.sockets import remove_if_dead
from zcache.pager.entrance import Entrance
from zcache.pager.keeper import Keeper
from zcache.pager.parameters import PARAMETERS, sorted_out
from zcache.sizes import parse_size

DESCRIPTION: Final = (
    "Serve regions of any program that asks at SOCKET: zcache.Region(size, limit, pager=SOCKET). Example: "
    "zcache pager /run/user/1000/pager size=32G budget=4G backing=/var/tmp/cold. Without budget and backing, the store "
    "takes as much RAM as it needs, up to all of size. SIGTERM or Ctrl-C: it ends with the last region; a second "
    "signal ends it immediately, and its programs with SIGBUS."
)


def main(words: Sequence[str]) -> int:
    """Until it is told to end: 0; 2 if it cannot be."""
    parser = argparse.ArgumentParser(prog="zcache pager", description=DESCRIPTION)
    parser.add_argument("socket", type=Path, help="path of the Unix socket; for its owner only")
    parser.add_argument(
        "parameters",
        nargs="+",
        metavar="key=value",
        help=f"size=SIZE of all regions together, and those of the store: {', '.join(PARAMETERS)} "
        "(control: default SOCKET.control)",
    )
    arguments = parser.parse_args(words)
    try:
        return _serve(arguments.socket.absolute(), sorted_out(arguments.parameters))
    except ZcacheError as refusal:
        print(f"zcache pager: {refusal}", file=sys.stderr)
        return 2


def _serve(path: Path, given: dict[str, str]) -> int:
    if "size" not in given:
        raise BadInput("size=: missing; give size=SIZE, of all regions together")
    size_bytes = parse_size("size", given.pop("size"))
    given.setdefault("control", f"{path}.control")
    keeper = Keeper(size_bytes, given, Entrance(path))
    keeper.on_serving = lambda: say(f"zcache: regions are served at {path}; zcache status --control {given['control']}")

    is_ending = False

    def end(_number: int, _frame: Any) -> None:
        nonlocal is_ending
        if is_ending:
            say(f"zcache: a second signal: regions in use: {keeper.region_count}; their programs get SIGBUS")
        elif keeper.region_count:
            say(
                f"zcache: regions in use: {keeper.region_count}; it ends with the last of them. "
                "A second signal ends it now, and their programs with it (SIGBUS)"
            )
        is_ending = True
        keeper.ask_to_end()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    why = keeper.run()
    with contextlib.suppress(OSError):
        remove_if_dead(Path(given["control"]))
    if why:
        raise BadInput(why)
    return 0


if __name__ == "__main__":
    sys.exit(run("zcache pager", lambda: main(sys.argv[1:])))
