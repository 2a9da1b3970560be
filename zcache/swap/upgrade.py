"""swap-upgrade: the code that is on disk now takes the running server's place, with the swap on.

What the new code would refuse (the parameters, the image) is found out first, while the old server serves: then nothing
happens. The keeper does the replacing, exactly as after a death; the requests of some seconds wait.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zcache import image
from zcache.swap import process
from zcache.swap.error import SwapError
from zcache.swap.keeper import REPLACE_SIGNAL
from zcache.swap.process import ProcessIdentity
from zcache.swap.server_process import SERVE
from zcache.swap.state import DEFAULT_FOLDER, StateFolder

#: The old server's end (30 s at most), the new one's start, with memory short.
REPLACE_SECONDS: Final = 120.0


def upgrade(folder: StateFolder, report: Callable[[str], None] = print) -> float:
    """Replace the server; how many seconds it took. Raises `SwapError`, and then says whether the old one goes on."""
    state = folder.load()
    if state is None or not process.is_running(state.keeper):
        raise SwapError(f"no swap is up in {folder.path}")
    if not folder.armed.exists():
        raise SwapError("swap-up has not come to its end; try again when it has")
    descriptor = open_image(state.keeper)
    try:
        check(descriptor, state.parameters)
        signs = image.Signs(descriptor)
        epoch, begin = signs.epoch, time.monotonic()
        with process.opened(state.keeper) as keeper:
            if keeper is None:
                raise SwapError("the keeper has ended")
            signal.pidfd_send_signal(keeper, REPLACE_SIGNAL)
        report(f"replacing server number {epoch}")
        while signs.epoch == epoch or not signs.connections:
            if time.monotonic() - begin > REPLACE_SECONDS:
                raise SwapError(
                    f"the new server does not serve after {REPLACE_SECONDS:.0f} s; {folder.log} says why; "
                    "until one does the old one goes on"
                )
            time.sleep(0.05)
        return time.monotonic() - begin
    finally:
        os.close(descriptor)


def open_image(keeper: ProcessIdentity) -> int:
    """A descriptor of the image that a keeper holds."""
    for link in Path(f"/proc/{keeper.pid}/fd").iterdir():
        if str(link.readlink()).startswith(f"/memfd:{image.NAME}"):
            return os.open(link, os.O_RDWR | os.O_CLOEXEC)
    raise SwapError(f"the keeper (pid {keeper.pid}) has no image")


def check(descriptor: int, parameters: Sequence[str]) -> None:
    """Raises `SwapError` if the code on disk would not go on with the image."""
    command = [*SERVE, "--check", *parameters, f"image={descriptor}"]
    done = subprocess.run(command, pass_fds=[descriptor], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise SwapError(f"refused by the code on disk, the old server goes on: {reason}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 replaced, 1 not and a line says why, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="swap-upgrade", description="Replace a running zcache server by this code.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER, help="state folder (%(default)s)")
    folder = StateFolder(parser.parse_args(arguments).folder)
    try:
        if os.geteuid() != 0:
            raise SwapError("only root can do this")
        if not folder.path.is_dir():
            raise SwapError(f"no swap is up in {folder.path}")
        with folder.locked():
            seconds = upgrade(folder)
    except (SwapError, OSError) as error:
        print(f"swap-upgrade: error: {error}", file=sys.stderr)
        return 1
    print(f"swap-upgrade: the new server serves, after {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
