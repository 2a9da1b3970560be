"""swap-upgrade: the code that is on disk now takes the running server's place, with the swap on.

The keeper does it, exactly as after a death, once the new code has started and found that it can go
on with the image; if it cannot, the old server goes on as if nothing had been asked for. The
requests of some seconds wait.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zcache.errors import EnvironmentProblem, SwapError
from zcache.image import image
from zcache.image.signs import Signs
from zcache.inherited import start
from zcache.keeper.launch import error_lines
from zcache.keeper.signals import REPLACE_SIGNAL
from zcache.keeper.state import DEFAULT_FOLDER, StateFolder
from zcache.linux import process, standard_streams
from zcache.swap import sleep_units

KEEPER_GONE: Final = "run swap-down soon, while the server lives, and then swap-up"

#: The new server's start with memory short, the old one's end (30 s at most), the new one's turn.
REPLACE_SECONDS: Final = 300.0


def upgrade(folder: StateFolder, report: Callable[[str], None] = print) -> float:
    """Replace the server; how many seconds it took. Raises `SwapError`, and then says whether the
    old one goes on."""
    state = folder.load()
    if state is None:
        raise SwapError(f"no swap is up in {folder.path}")
    if not process.is_running(state.keeper):
        raise SwapError(
            f"the keeper (pid {state.keeper.pid}) is gone, and nobody can replace the server: {KEEPER_GONE}"
        )
    if not folder.armed.exists():
        raise SwapError("swap-up has not come to its end; try again when it has")
    descriptor = image.of_process(state.keeper.pid)
    try:
        signs = Signs(descriptor)
        upgraded, refusals, begin = signs.upgraded, signs.refusals, time.monotonic()
        said_before = len(folder.log.read_text(errors="replace"))
        with process.opened(state.keeper) as keeper:
            if keeper is None:
                raise SwapError("the keeper has ended")
            signal.pidfd_send_signal(keeper, REPLACE_SIGNAL)
        report(f"replacing server number {signs.epoch}")
        while True:
            if signs.refusals != refusals:
                said = error_lines(folder.log.read_text(errors="replace")[said_before:]) or ["it says nothing"]
                raise SwapError("not replaced, the old code goes on:\n  " + "\n  ".join(said))
            if time.monotonic() - begin > REPLACE_SECONDS:
                until = "the old one goes on" if signs.upgraded == upgraded else "the kernel's requests wait"
                raise SwapError(
                    f"the new server does not serve after {REPLACE_SECONDS:.0f} s; {folder.log} says why; "
                    f"until it does {until}"
                )
            if upgraded < signs.upgraded <= signs.epoch and signs.serves and signs.connections:
                return time.monotonic() - begin
            time.sleep(0.05)
    finally:
        os.close(descriptor)


def _report(line: str) -> None:
    standard_streams.say(f"swap-upgrade: {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 replaced, 1 not and a line says why, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="swap-upgrade", description="Replace a running zcache server by this code.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER, help="state folder (%(default)s)")
    folder = StateFolder(parser.parse_args(arguments).folder.resolve())
    try:
        if os.geteuid() != 0:
            raise SwapError("only root can do this")
        if not folder.path.is_dir():
            raise SwapError(f"no swap is up in {folder.path}")
        with folder.locked():
            seconds = upgrade(folder, _report)
            sleep_units.guard(_report)  # a swap of before there was that has none
    except (SwapError, EnvironmentProblem, OSError) as error:
        print(f"swap-upgrade: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("swap-upgrade: not waited for: the keeper may replace the server yet", file=sys.stderr)
        return 128 + signal.SIGINT
    _report(f"the new server serves, after {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(start.run("swap-upgrade", main))
