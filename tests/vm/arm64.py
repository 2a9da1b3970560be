"""Real swap on arm64, with kernel pages of 4 or 16 KiB: `python -m tests.vm.arm64 --pages 16`.

QEMU emulates the machine, on any Debian (packages: qemu-system-arm, cpio, e2fsprogs; scripts/setup
does not install the first). Debian 13's own kernels and programs run in it (`arm64_root.py`):
`zcache.bench.run.guest` turns the swap on, runs a load that verifies what it has in memory, checks
the books, and takes the swap off. Exit status 0 only if all of that, and the kernel's log, are
well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.vm.arm64_root import KERNELS, TREE, Arm64Root, cache_folder
from zcache.bench.run.__main__ import kernel_troubles, losses
from zcache.bench.run.disturbance import parse as parse_disturbance
from zcache.errors import EnvironmentProblem
from zcache.testvm import say

MEMORY_MIB: Final = 700
PARAMETERS: Final = ("size=512M", "budget=64M", "backing=/dev/vdb", "hardening=require")
BACKING_BYTES: Final = 640 << 20
#: More than the guest has free by some 100 MiB.
HEAP_MIB: Final = 640
TIMEOUT_SECONDS: Final = 1800

#: As scripts/setup does it, without pip.
COMPILE: Final = (
    "gcc -O2 -shared -fPIC -I/usr/include/python3.13 zcache/page_loop/*.c -o zcache/page_loop/_compiled.abi3.so &&"
)

#: PID 1. What it says goes to the terminal; the report through a port of its own.
INIT: Final = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
busybox ip link set lo up
depmod 2>/dev/null
exec </dev/null >/dev/hvc0 2>&1
cd /{tree}
{command}
echo "exit status $?"
port=$(grep -l zcache-report /sys/class/virtio-ports/*/name)
cat /tmp/report.json >/dev/$(basename "$(dirname "$port")")
sync
busybox poweroff -f
"""


def heap_load(seconds: int, mib: int = HEAP_MIB) -> list[str]:
    """A heap larger than RAM, filled, then touched at random for so long, and verified at each
    touch."""
    return ["python3", "zcache/bench/pressure/heap.py", str(mib), "1", str(seconds), "0"]


def run(
    page_kib: int, parameters: tuple[str, ...], load: list[str], disturb: str | None = None, page_loop: str = "compiled"
) -> list[str]:
    """One guest, which compiles the page loop first, or does not; everything that keeps it from
    being a success."""
    root = Arm64Root(cache_folder())
    root.make()
    words = [*([disturb] if disturb else []), *parameters, "--", *load]
    command = " ".join(
        [COMPILE if page_loop == "compiled" else "", "python3 -m zcache.bench.run.guest /tmp/report.json", *words]
    )
    with tempfile.TemporaryDirectory(prefix="zcache-arm64-") as name:
        folder = Path(name)
        backing, report_path, log = folder / "backing", folder / "report", folder / "kernel.log"
        with backing.open("wb") as file:
            file.truncate(BACKING_BYTES)
        image = root.image(page_kib, INIT.format(tree=TREE, command=command), folder)
        initramfs = root.initramfs(page_kib, folder)
        argv = _compose(root.kernel(page_kib), initramfs, [image, backing], report_path, log)
        say(f"booting {root.kernel(page_kib).name} in software emulation, {MEMORY_MIB} MiB…")
        begin = time.monotonic()
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False, timeout=TIMEOUT_SECONDS)
            failures = [f"QEMU ended with {done.returncode}"] if done.returncode else []
        except FileNotFoundError:
            raise EnvironmentProblem("no qemu-system-aarch64; as root: apt-get install qemu-system-arm") from None
        except subprocess.TimeoutExpired:
            failures = [f"no end after {TIMEOUT_SECONDS} s"]
        seconds = time.monotonic() - begin
        text = log.read_text(errors="replace") if log.exists() else ""
        report = json.loads(report_path.read_text()) if report_path.exists() and report_path.stat().st_size else None
    failures += [f"kernel log: {line}" for line in kernel_troubles(text, disturbed=bool(disturb))[:10]]
    if report is None:
        print(text[-6000:], file=sys.stderr)
        return [*failures, "the guest left no report"]
    _print(report, page_kib, seconds)
    return failures + _judge(report, disturb, page_loop)


def _compose(kernel: Path, initramfs: Path, disks: list[Path], report: Path, log: Path) -> list[str]:
    """QEMU's command line. The CPU is a plain one: pointer authentication, which `max` has, is slow
    to emulate."""
    argv = ["setpriv", "--pdeathsig", "KILL", "qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a76"]
    argv += ["-accel", "tcg,thread=multi,tb-size=256", "-smp", "2", "-m", f"{MEMORY_MIB}M", "-nodefaults", "-no-reboot"]
    argv += ["-display", "none", "-kernel", str(kernel), "-initrd", str(initramfs)]
    argv += ["-append", "console=ttyAMA0 panic=-1 mitigations=off cgroup.memory=nokmem init=/init"]
    for disk in disks:
        argv += ["-drive", f"file={disk},format=raw,if=none,id={disk.stem},cache=unsafe,discard=unmap"]
        argv += ["-device", f"virtio-blk-pci,drive={disk.stem}"]
    argv += [
        "-device",
        "virtio-serial-pci",
        "-chardev",
        "stdio,id=out,signal=off",
        "-device",
        "virtconsole,chardev=out",
    ]
    argv += ["-chardev", f"file,id=report,path={report}"]
    argv += ["-device", "virtserialport,chardev=report,name=zcache-report"]
    return [*argv, "-chardev", f"file,id=log,path={log}", "-serial", "chardev:log"]


def _judge(report: dict[str, Any], disturb: str | None, page_loop: str) -> list[str]:
    status = report["status"]
    failures = losses(status)
    if status["page_loop"] != page_loop:
        failures.append(f"the page loop is {status['page_loop']}, not {page_loop}")
    if report["load_exit_status"]:
        failures.append(f"the load ended with {report['load_exit_status']}: {report['load_output'][-500:]}")
    if not report["check"]["balanced"]:
        failures.append(f"the books do not balance: {report['check']['imbalance']}")
    if disturb and report["disturbed"] != parse_disturbance(disturb)[1]:
        failures.append(f"the server was disturbed {report['disturbed']} times only: {report['disturbance_failure']}")
    failures += [f"{name} is 0: the load is too small" for name in ("pages_out", "pages_in") if not report[name]]
    return failures


def _print(report: dict[str, Any], page_kib: int, seconds: float) -> None:
    status = report["status"]
    names = (
        "page_loop",
        "state",
        "stored_pages",
        "ratio",
        "written_back_frames",
        "fetched_frames",
        "rss_bytes",
        "locked_bytes",
    )
    moved = [f"{report[name]} ({report[name] * page_kib >> 10} MiB)" for name in ("pages_out", "pages_in")]
    print(f"kernel pages of {page_kib} KiB: {moved[0]} out, {moved[1]} in")
    print("  " + ", ".join(f"{name} {status.get(name)}" for name in names))
    print(f"  hardening {status['hardening']}")
    print(f"  load {report['load_output'].strip()}, exit status {report['load_exit_status']}")
    print(f"  books {'balanced' if report['check']['balanced'] else 'NOT balanced'}")
    print(f"  seconds: load {report['load_seconds']}, swapoff {report['swap_off_seconds']}, all {seconds:.0f}")


def main() -> int:
    """Prints what was seen."""
    parser = argparse.ArgumentParser(prog="tests.vm.arm64", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pages", type=int, choices=KERNELS, default=16, help="KiB of a kernel's page (%(default)s)")
    parser.add_argument("--heap", type=int, default=HEAP_MIB, help="MiB of the load (%(default)s)")
    parser.add_argument("--seconds", type=int, default=60, help="how long it is touched once filled (%(default)s)")
    parser.add_argument("--disturb", metavar="KIND:TIMES:SECONDS", help="as scripts/run takes it")
    parser.add_argument("parameters", nargs="*", help=f"instead of {' '.join(PARAMETERS)}")
    chosen = parser.parse_args()
    load = heap_load(chosen.seconds, chosen.heap)
    try:
        failures = run(chosen.pages, tuple(chosen.parameters) or PARAMETERS, load, chosen.disturb)
    except EnvironmentProblem as error:
        print(f"arm64: {error}", file=sys.stderr)
        return 125
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
