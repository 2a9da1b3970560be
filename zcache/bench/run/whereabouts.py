"""Where the frames are while a load runs: in RAM, at engines, on the disk. And when half of it is
over, an engine is killed.

The guest's half looks once a second; it runs in a program whose memory is locked, beside the
server, and asks that. The plot is made on the host, where nothing is short.

Locking: one thread, and who started it reads what it has found once it is stopped.
"""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zcache.bench.run.orders import order
from zcache.control.ask import ask
from zcache.errors import EnvironmentProblem

INTERVAL_SECONDS: Final = 1.0
#: Of frames at engines, for one's death to be worth looking at; with less it is waited for until
#: there are any, and half as much time again has passed.
ENOUGH_BYTES: Final = 16 << 20
LATE: Final = 1.5
#: How the plot calls them, from the bottom up.
PLACES: Final = ("RAM", "engines", "disk")


class Whereabouts:
    """Of the frames of the server at `control`; after `kill_seconds`, and once engines hold enough
    of them, the host is told at `order_port` to kill an engine."""

    def __init__(self, control: Path, order_port: int, kill_seconds: float) -> None:
        self.samples: list[dict[str, float]] = []
        self.killed_at_seconds: float | None = None
        self.failure: str | None = None
        self._control = control
        self._order_port = order_port
        self._kill_seconds = kill_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """From here on."""
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """What was seen, for the report."""
        self._stopped.set()
        self._thread.join()
        return {"samples": self.samples, "killed_at_seconds": self.killed_at_seconds, "failure": self.failure}

    def _run(self) -> None:
        begin = time.monotonic()
        while not self._stopped.wait(INTERVAL_SECONDS):
            with contextlib.suppress(EnvironmentProblem):  # it is busy: at the next turn
                status = ask(self._control, "status")
                seconds = time.monotonic() - begin
                self.samples.append({"seconds": round(seconds, 1), **sample_of(status)})
                if self.killed_at_seconds is None and not self.failure and self.is_time(seconds, status):
                    self._kill(seconds)

    def is_time(self, seconds: float, status: Mapping[str, Any]) -> bool:
        """For an engine to be killed."""
        if seconds > LATE * self._kill_seconds:
            return bool(status["remote_frames"])
        return seconds > self._kill_seconds and status["remote_frames"] * status["frame_bytes"] >= ENOUGH_BYTES

    def _kill(self, seconds: float) -> None:
        try:
            order(self._order_port, "kill 0")
        except OSError as error:
            self.failure = str(error)
        else:
            self.killed_at_seconds = round(seconds, 1)
            print(f"  {seconds:4.0f} s: one of the engines is killed", flush=True)


def sample_of(status: Mapping[str, Any]) -> dict[str, float]:
    """MiB of frames in each place; one that is in RAM and below counts as below. And for each
    engine, what it holds."""
    mebibyte = (1 << 20) / status["frame_bytes"]
    frames = {
        "RAM": status["resident_frames"] - status["clean_frames"],
        "engines": status["remote_frames"],
        "disk": status["backing_frames"],
    }
    frames |= {f"engine {number}": peer["frames"] for number, peer in enumerate(status["remote_peers"])}
    return {name: round(count / mebibyte, 2) for name, count in frames.items()}


def plot(samples: Sequence[Mapping[str, float]], killed_at_seconds: float | None, path: Path) -> None:
    """A PNG: above, where the frames are; below, what each engine holds."""
    import matplotlib  # here: it takes a second and 60 MiB

    matplotlib.use("agg")
    from matplotlib import pyplot

    seconds = [sample["seconds"] for sample in samples]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(10, 7), layout="constrained")
    above.stackplot(seconds, *([sample[place] for sample in samples] for place in PLACES), labels=PLACES)
    above.set_title("MiB of frames: only in RAM, at two engines, on the disk", loc="left", fontsize=9)
    for name in (name for name in samples[0] if name.startswith("engine ")):
        below.plot(seconds, [sample[name] for sample in samples], linewidth=1.5, label=name)
    below.set_title("MiB of frames at each engine, as the server knows it", loc="left", fontsize=9)
    for axis in (above, below):
        if killed_at_seconds is not None:
            axis.axvline(killed_at_seconds, linestyle="--", color="black", linewidth=1, label="engine 0 is killed")
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper left", fontsize=8)
    below.set_xlabel("seconds of load")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
