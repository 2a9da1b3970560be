"""What a guest runs on: the kernel to boot, and whether KVM can run it.

`/dev/kvm` being there proves nothing: on some hosts QEMU aborts when it sets the first registers,
on others the guest spins for ever before its first message, and `accel=kvm:tcg` falls back in
neither case. So the answer is measured: boot the very kernel without a root file system and see
whether it gets as far as complaining of that. A yes takes about a second; a no costs at most
PROBE_DEADLINE_SECONDS, once per host boot, kernel and QEMU: the answer is remembered in the virtual
environment. ZCACHE_ACCEL=kvm or =tcg overrides it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from zcache.errors import BadInput, EnvironmentProblem

QEMU = "qemu-system-x86_64"
PROBE_DEADLINE_SECONDS = 20
# The last thing that a kernel does which has everything but a root file system.
PROBE_MARKER = b"Unable to mount root fs"


def newest_kernel(boot: Path = Path("/boot")) -> Path:
    """Debian's stock kernel of the highest version; not the host's running one, which may be
    anything."""
    kernels = list(boot.glob("vmlinuz-*-amd64"))
    if not kernels:
        raise EnvironmentProblem(f"no {boot}/vmlinuz-*-amd64: run scripts/setup, it installs linux-image-amd64")
    return max(kernels, key=lambda kernel: [int(digits) for digits in re.findall(r"\d+", kernel.name)])


def usable_kvm() -> bool:
    """Whether KVM really runs the newest stock kernel here."""
    forced = os.environ.get("ZCACHE_ACCEL")
    if forced is not None:
        if forced not in ("kvm", "tcg"):
            raise BadInput(f"ZCACHE_ACCEL={forced}: must be kvm or tcg")
        return forced == "kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    kernel = newest_kernel()
    memory_file = Path(sys.prefix) / "kvm-probe.json"
    key = _probe_key(kernel)
    remembered = _recall(memory_file, key)
    if remembered is not None:
        return remembered
    answer = _boots_under_kvm(kernel)
    _remember(memory_file, key, answer)
    return answer


def _probe_key(kernel: Path) -> str:
    """Whatever may change the answer: a reboot (another host kernel, other nesting), guest kernel,
    QEMU."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    return f"{boot_id} {kernel} {version.splitlines()[0]}"


def _recall(memory_file: Path, key: str) -> bool | None:
    try:
        remembered = json.loads(memory_file.read_text())
    except (OSError, ValueError):
        return None
    return bool(remembered["usable"]) if remembered.get("key") == key else None


def _remember(memory_file: Path, key: str, answer: bool) -> None:
    staged = memory_file.with_suffix(f".{os.getpid()}")
    try:
        staged.write_text(json.dumps({"key": key, "usable": answer}))
        staged.replace(memory_file)
    except OSError:
        return  # A virtual environment that is not ours to write: probe again next time.


def _boots_under_kvm(kernel: Path) -> bool:
    # A guest that spins must not outlive us if we are killed.
    argv = ["setpriv", "--pdeathsig", "KILL", QEMU, "-accel", "kvm", "-cpu", "host", "-m", "256M"]
    argv += ["-nodefaults", "-no-reboot"]
    argv += ["-display", "none", "-serial", "stdio"]
    argv += ["-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"]
    try:
        probe = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_DEADLINE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return PROBE_MARKER in probe.stdout
