"""The guest's half of `scripts/bench breathing`: `python -m zcache.bench.breathing.guest FOLDER`,
which the host shares. `job.json` comes in there; `report.json` goes out.

The budget is read from the image's header, which costs the server nothing and this process next to
nothing: it is locked in memory, for it has to look when everybody else waits.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from zcache.bench.swap.areas import DISK, PAGES
from zcache.budget.pressure import PSI
from zcache.control.ask import ask
from zcache.image import image
from zcache.image.signs import Signs
from zcache.keeper.state import StateFolder
from zcache.linux import libc
from zcache.swap.buildup import Options
from zcache.swap.up import swap_area
from zcache.testvm.figures import read_meminfo_kib, read_vmstat

LOOK_SECONDS: Final = 0.25
HEAP: Final = Path(__file__).parent.parent / "swap/heap_of_pages.py"


class Sampler:
    """Looks at the machine, and at the budget of a keeper's server, from `start` to `stop`."""

    def __init__(self, keeper_pid: int) -> None:
        self.samples: list[dict[str, float]] = []
        self.begin_seconds = time.monotonic()
        descriptor = image.of_process(keeper_pid)
        self._signs = Signs(descriptor)
        self._frame_bytes = int(image.read_header(descriptor)["frame_bytes"])
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            vmstat = read_vmstat()
            self.samples.append(
                {
                    "seconds": time.monotonic() - self.begin_seconds,
                    "budget_bytes": self._signs.budget_frames * self._frame_bytes,
                    "available_bytes": read_meminfo_kib()["MemAvailable"] << 10,
                    "pages_out": vmstat["pswpout"],
                    "pages_in": vmstat["pswpin"],
                    "stalled_us": _stalled_us(),
                }
            )


def _stalled_us() -> int:
    try:
        return int(PSI.read_text().splitlines()[0].rpartition("=")[2])
    except OSError:
        return 0


def main(folder: Path) -> int:
    """Exit status 0 if each load's was."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    libc.mlockall(libc.MCL_CURRENT | libc.MCL_FUTURE | libc.MCL_ONFAULT)
    parameters = (*job["parameters"], f"backing={DISK}")
    wrong, marks = 0, []
    with swap_area(Options(parameters=parameters, discard=True)) as state:
        sampler = Sampler(state.keeper.pid)
        sampler.start()
        time.sleep(job["rest_seconds"] / 4)
        for turn in range(job["steps"]):
            marks.append(time.monotonic() - sampler.begin_seconds)
            load = [sys.executable, "-I", "-S", str(HEAP), str(PAGES)]
            load += map(str, (job["heap_mib"], job["touches"], job["seed"] + turn))
            done = subprocess.run(load, stdout=subprocess.PIPE, text=True, check=True)
            wrong += json.loads(done.stdout)["wrong_pages"]
            marks.append(time.monotonic() - sampler.begin_seconds)
            time.sleep(job["rest_seconds"])
        sampler.stop()
        status, audit = ask(StateFolder().control, "status"), ask(StateFolder().control, "check")
    report = {"samples": sampler.samples, "marks": marks, "wrong_pages": wrong, "status": status, "check": audit}
    (folder / "report.json").write_text(json.dumps(report))
    return int(wrong > 0 or not audit["balanced"] or status["state"] != "ok")


if __name__ == "__main__":
    os.chdir("/")
    sys.exit(main(Path(sys.argv[1])))
