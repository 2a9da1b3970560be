"""The guest's half of `scripts/bench swap`: `python -m zcache.bench.swap.guest FOLDER`, which the
host shares. `job.json` comes in there; `report.json` goes out.

With `available_mib` in the job, as much memory is locked away as leaves just that, so that two
guests are alike.
"""

import json
import mmap
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from zcache.bench.swap.areas import AREAS, MIB, PAGES, Sizes
from zcache.testvm.figures import read_meminfo_kib, read_vmstat

#: mmap(2): populated at once, and locked.
MAP_LOCKED: Final = 0x2000


def main(folder: Path) -> int:
    """Exit status 0 if the work came to its end."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    sizes = Sizes(job["size_mib"], job["budget_mib"], job["memory_mib"])
    before_mib = _available_mib()
    with AREAS[job["area"]](sizes) as use:
        report: dict[str, Any] = {"taken_mib": before_mib - _available_mib()}
        ballast = _lock_away(_available_mib() - job["available_mib"]) if job["available_mib"] else None
        report["available_mib"] = _available_mib()
        begin, before = time.monotonic(), read_vmstat()
        work = [sys.executable, "-I", "-S", str(Path(__file__).with_name("heap_of_pages.py"))]
        work += [str(PAGES), *map(str, (job["heap_mib"], job["touches"], job["seed"]))]
        with subprocess.Popen(work, stdout=subprocess.PIPE, text=True) as child:
            output, most = "", None
            while child.poll() is None:
                time.sleep(1)
                now = use()
                most = now if now and (most is None or now.pages > most.pages) else most
            assert child.stdout
            output = child.stdout.read()
        report["seconds"] = round(time.monotonic() - begin, 1)
        after = read_vmstat()
        report |= {
            name: after[field] - before[field] for name, field in (("pages_out", "pswpout"), ("pages_in", "pswpin"))
        }
        report |= json.loads(output) if child.returncode == 0 else {"exit_status": child.returncode}
        if most:
            report |= {"held_pages": most.pages, "held_bytes": most.memory_bytes}
        del ballast
    (folder / "report.json").write_text(json.dumps(report))
    return child.returncode


def _available_mib() -> int:
    return read_meminfo_kib()["MemAvailable"] >> 10


def _lock_away(mib: int) -> mmap.mmap | None:
    if mib <= 0:
        return None
    return mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_LOCKED)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
