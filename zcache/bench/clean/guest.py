"""The guest's half of `scripts/bench clean`: `python -m zcache.bench.clean.guest FOLDER`, which the
host shares. `job.json` comes in there; `report.json` goes out.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd

from zcache.bench.clean.load import Layout, Load, seals_of
from zcache.bench.served import running, serve, speaks_nbd
from zcache.bench.swap.areas import PAGES as DISK

#: In /sys/block/DEVICE/stat: reads that have ended.
_READS_FIELD = 0


@contextlib.contextmanager
def server(kind: str, budget_mib: int, folder: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A client of the disk's export, and what the server says of itself at the end. `kind` is off,
    for nbdkit's own file plugin, which is told to let the kernel keep nothing, or what `admit=` is
    to be."""
    client, status = nbd.NBD(), dict[str, Any]()
    if kind == "off":
        with tempfile.TemporaryDirectory() as name:
            socket = Path(name) / "socket"
            command = ["nbdkit", "-f", "-t", "1", f"--unix={socket}", "file", str(DISK.resolve()), "cache=none"]
            with running(command, folder / "log", lambda: speaks_nbd(socket)):
                client.connect_unix(str(socket))
                yield client, status
                client.shutdown()
        return
    words = ("size=4M", f"budget={budget_mib}M", f"clean=disk:{DISK}:ro", f"admit={kind}")
    with serve(folder / "log", *words) as served:
        client.set_export_name("disk")
        client.connect_unix(str(served.socket))
        yield client, status
        status |= served.ask("status")
        assert served.ask("check")["balanced"]
        client.shutdown()


def main(folder: Path) -> int:
    """Exit status 0 if every page was what it is on the disk."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    layout = Layout(job["hot_pages"], job["scan_pages"])
    seals = seals_of(DISK, layout.hot_pages + layout.scan_pages)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    stat = os.open(f"/sys/block/{DISK.resolve().name}/stat", os.O_RDONLY)

    def disk_reads() -> int:
        return int(os.pread(stat, 256, 0).split()[_READS_FIELD])

    with server(job["kind"], job["budget_mib"], folder) as (client, status):
        load = Load(client, layout, seals, disk_reads, job["seed"])
        begin = time.monotonic()
        figures = load.run()
        figures["seconds"] = time.monotonic() - begin
    figures |= {name: status[name] for name in ("ephemeral_pages", "reject_not_reused", "eph_ate_tail") if status}
    (folder / "report.json").write_text(json.dumps(figures))
    return int(load.wrong_pages > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
