"""What is done to a server under a load, a number of times: it is killed, or replaced."""

import math
import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from zcache.errors import SwapError
from zcache.image.image import of_process
from zcache.image.signs import Signs
from zcache.keeper.state import StateFolder
from zcache.swap.upgrade import upgrade


def kill(folder: StateFolder) -> None:
    """SIGKILL the server, wherever it is."""
    state = folder.load()
    assert state
    descriptor = of_process(state.keeper.pid)
    try:
        os.kill(Signs(descriptor).pid, signal.SIGKILL)
    finally:
        os.close(descriptor)


def replace(folder: StateFolder) -> None:
    """Upgrade in place, to the same code."""
    upgrade(folder, lambda _line: None)


#: What an upgrade takes in an emulated guest that thrashes, and more: 30 s to load the code, 12 to
#: take over (seen).
UPGRADE_SECONDS: Final = 65
#: For the load to go on after the last one.
LAST_SECONDS: Final = 15

KINDS: Final[dict[str, Callable[[StateFolder], None]]] = {"kill": kill, "upgrade": replace}


class Disturbance:
    """Does it to the server of a state folder every so many seconds, a number of times."""

    def __init__(self, kind: str, times: int, interval_seconds: float, folder: StateFolder) -> None:
        self.done = 0
        self.failure: str | None = None
        self._act = KINDS[kind]
        self._times = times
        self._interval_seconds = interval_seconds
        self._folder = folder
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """The first comes after the first interval."""
        self._thread.start()

    def stop(self) -> int:
        """How often it was done."""
        self._stopped.set()
        self._thread.join()
        return self.done

    def _run(self) -> None:
        while self.done < self._times and not self._stopped.wait(self._interval_seconds):
            try:
                self._act(self._folder)
            except ProcessLookupError:
                continue  # the last one has no successor yet: at the next turn
            except (SwapError, OSError, ValueError) as error:
                self.failure = f"disturbance {self.done + 1}: {error}"
                return
            self.done += 1
            print(f"  server disturbed, {self.done} of {self._times}", flush=True)


def parse(text: str) -> tuple[str, int, float]:
    """`kill:10:15` is SIGKILL, ten times, every 15 s."""
    kind, *figures = text.split(":")
    if kind not in KINDS or len(figures) != 2:
        raise ValueError(f"{text}: not of the form KIND:TIMES:SECONDS, with KIND one of {', '.join(KINDS)}")
    return kind, int(figures[0]), float(figures[1])


def load_seconds(text: str) -> int:
    """How long a load has to run so that there is time for all of it."""
    kind, times, seconds = parse(text)
    return math.ceil(times * (seconds + (UPGRADE_SECONDS if kind == "upgrade" else 0)) + LAST_SECONDS)
