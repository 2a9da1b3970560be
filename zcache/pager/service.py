"""`zcache pager SOCKET size=SIZE key=value…`: a pager for several programs, in the foreground. Each
region has a limit of its own; one store, and its budget, are for all of them."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from zcache.errors import BadInput, ZcacheError
from zcache.inherited.start import run
from zcache.pager.entrance import Entrance
from zcache.pager.keeper import Keeper
from zcache.pager.parameters import PARAMETERS
from zcache.sizes import parse_size

DESCRIPTION: Final = (
    "Serve regions of any program that asks at SOCKET: zcache.Region(size, limit, pager=SOCKET). "
    "SIGTERM or Ctrl-C: it ends with the last of them; once more, at once."
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
        return _serve(arguments.socket.absolute(), _sorted_out(arguments.parameters))
    except ZcacheError as refusal:
        print(f"zcache pager: {refusal}", file=sys.stderr)
        return 2


def _sorted_out(words: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in words:
        key, is_given, value = word.partition("=")
        if not is_given or key in given:
            raise BadInput(f"{word}: give key=value, and each key once")
        given[key] = value
    return given


def _serve(path: Path, given: dict[str, str]) -> int:
    if "size" not in given:
        raise BadInput("size=: missing; give size=SIZE, of all regions together")
    size_bytes = parse_size("size", given.pop("size"))
    given.setdefault("control", f"{path}.control")
    greeting = f"zcache: regions are served at {path}; zcache status --control {given['control']}"
    keeper = Keeper(size_bytes, given, Entrance(path), greeting)

    def end(_number: int, _frame: Any) -> None:
        keeper.ask_to_end()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    why = keeper.run()
    path.unlink(missing_ok=True)
    if why:
        raise BadInput(why)
    return 0


if __name__ == "__main__":
    sys.exit(run("zcache pager", lambda: main(sys.argv[1:])))
