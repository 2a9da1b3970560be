"""The guest's half of test_clean_exports.py: a file system on a clean export of the server that the
guest swaps to.

Runs as root in the test VM, with two disks, the second of which it overwrites:

    scripts/vm --memory 500M --disk 560M --disk 200M -- .venv/bin/python -m tests.vm.clean_exports

Files are written, overwritten and removed, with the caches dropped now and then, under stress-ng;
each is what it was last written as, through zcache and afterwards on the disk itself; and fsck
finds nothing, on either.
"""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zcache.control.ask import ask
from zcache.keeper.state import StateFolder
from zcache.swap import nbd_device
from zcache.swap.buildup import Options
from zcache.swap.up import swap_area
from zcache.testvm.figures import read_vmstat

BACKING: Final = Path("/dev/disk/by-id/virtio-vmdisk0")
DISK: Final = Path("/dev/disk/by-id/virtio-vmdisk1")
MOUNTED: Final = Path("/tmp/clean")
PARAMETERS: Final = ("size=512M", "budget=48M", f"backing={BACKING}", f"clean=data:{DISK}", "hardening=require")
LOAD: Final = ("stress-ng", "--vm", "2", "--vm-bytes", "480M", "--vm-keep", "--vm-method", "rand-set", "--verify")
LOAD_SECONDS: Final = 25
FILES: Final = 40


def run(*words: object) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.returncode, done.stdout + done.stderr)


@contextlib.contextmanager
def mounted(device: Path | str) -> Iterator[None]:
    MOUNTED.mkdir(exist_ok=True)
    run("mount", device, MOUNTED)
    try:
        yield
    finally:
        run("umount", MOUNTED)


def verify(digests: dict[str, bytes]) -> None:
    assert {path.name for path in MOUNTED.iterdir() if path.is_file()} == digests.keys()
    for name, digest in digests.items():
        assert hashlib.sha256((MOUNTED / name).read_bytes()).digest() == digest, name


def change_files(rng: random.Random, digests: dict[str, bytes]) -> None:
    """One file becomes another, or goes."""
    name = str(rng.randrange(FILES))
    path = MOUNTED / name
    if rng.random() < 0.2:
        path.unlink(missing_ok=True)
        digests.pop(name, None)
        return
    unit = rng.randbytes(rng.choice([100, 3000, 4096]))
    content = (unit * 700)[: rng.choice([10, 5000, 300_000, 1_500_000])]
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()
        if rng.random() < 0.3:
            os.fsync(file.fileno())
    digests[name] = hashlib.sha256(content).digest()


def use_file_system(rng: random.Random, digests: dict[str, bytes]) -> int:
    """Until stress-ng has ended; how many changes there were."""
    changes = 0
    with subprocess.Popen(
        [*LOAD, "--timeout", f"{LOAD_SECONDS}s"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as load:
        while load.poll() is None:
            change_files(rng, digests)
            changes += 1
            if not changes % 25:
                Path("/proc/sys/vm/drop_caches").write_text("1")
                verify(digests)
        assert load.stdout
        assert load.returncode == 0, load.stdout.read()
    return changes


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", flush=True)
    rng, digests = random.Random(seed), dict[str, bytes]()
    before = read_vmstat()
    with swap_area(Options(parameters=PARAMETERS)):
        device = nbd_device.attach(StateFolder().socket, True, 0, name="data")
        run("mkfs.ext4", "-q", "-E", "nodiscard", device.path)
        with mounted(device.path):
            changes = use_file_system(rng, digests)
            Path("/proc/sys/vm/drop_caches").write_text("1")
            verify(digests)
            run("fstrim", MOUNTED)
            verify(digests)
        run("e2fsck", "-f", "-n", device.path)
        status = ask(StateFolder().control, "status")
        assert ask(StateFolder().control, "check")["balanced"] and status["state"] == "ok", status["reasons"]
        device.detach(timeout_seconds=10)
    run("e2fsck", "-f", "-n", DISK)
    with mounted(DISK):
        verify(digests)
    after = read_vmstat()
    found = {name: after[name] - before[name] for name in ("pswpout", "pswpin")} | status["clean_exports"][0]
    found |= {name: status[name] for name in ("pers_ate_eph", "evicted_ephemeral_frames", "reject_not_reused")}
    print(json.dumps(found | {"changes": changes}), flush=True)
    assert changes > 50 and found["pswpout"] > 10_000 and found["file_changes"] > 100 and found["gets"] > 1000, found
    return 0


if __name__ == "__main__":
    sys.exit(main())
