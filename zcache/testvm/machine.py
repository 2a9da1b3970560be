"""The machine of a run: QEMU's command line, from a dry run of virtme-ng, with its console turned
into the kernel log.

Traps that shaped it, each seen here:
- The kernel's 8250 driver is a single console: a second `console=ttyS1` is silently not enabled. So
  the log takes ttyS0, which virtme throws away, and the command's own streams use virtio ports.
- QEMU's `file` chardev truncates what it opens and keeps an offset of its own: given the caller's
  stdout, it would destroy a log that is being appended to. So it gets pipes, which threads copy.
- A write error of a disk pauses a guest by default (`werror=enospc`), for ever: errors are reported
  to it instead.
- Coldplugging drivers that no test needs is a third of a boot under emulation: 18.6 s with all of
  them, 12.0 s without (one run each, idle host, a list that differed from SKIPPED_MODULES in a few
  names).
- Without KVM, QEMU carries out `rep stosb`, by which a kernel clears a page where `erms` is
  offered, byte by byte; and a kernel that does not trust the TSC reads the emulated HPET, under the
  lock with which QEMU's main thread works for the disks. A CPU stood in the clearing of one page
  for 23 s ("soft lockup"). The longest touch of memory in a 384 MiB guest under `cache` of
  scripts/pressure: 15 s; with the TSC, which is the host's and the same for all CPUs, 8 s; without
  `erms` as well, 4 to 7 s in four runs; a boot is 3 s shorter. `rep stosq`, which comes next, is as
  slow: kcompactd stood still for 22 s in one cell of forty. Without it (no `rep_good`) the first
  touch of a page takes 10 us instead of 19.
- QEMU 7.2 without KVM keeps what it has translated until its buffer (1 GiB) is full, in the pages'
  names, whatever becomes of them; whoever writes to such a page undoes it block by block, and each
  block empties the jump caches of all CPUs (TARGET_TB_PCREL in accel/tcg/tb-maint.c). After a build
  had run, the kernel's compaction of memory took 5.6 ms a page, 20 s in one cell of
  scripts/pressure, and was reported as a soft lockup once it took 22 s on end. With a buffer of 64
  MiB (which is emptied whole), in the same guest under `stress,build,cache`: 20.5 s of kcompactd
  became 0.05, the longest gap of an ordinary program 7.0 s became 0.02, the cell 75 s became 39,
  and no load took longer.
- One guest stood still, both CPUs at one no-op in kmem_cache_alloc, before a test of __GFP_ACCOUNT:
  the place that the kernel patches when the first control group turns the accounting of kernel
  memory on. QEMU without KVM seems to be no good at code that another CPU changes. With
  `cgroup.memory=nokmem` that place is left alone.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from zcache.errors import EnvironmentProblem
from zcache.testvm import REPOSITORY, VmConfig

# A short mount point in the guest's /run, which virtme makes a tmpfs.
JOB_MOUNT: Final = Path("/run/zcache-vm")
SYSTEMD_INIT: Final = REPOSITORY / "zcache/testvm/systemd_init"
SWAP_SERIAL: Final = "zcacheswap"
SKIPPED_MODULES: Final = (
    "kvm,kvm_amd,kvm_intel,libata,lpc_ich,i2c_i801,i6300esb,pcspkr,psmouse,evdev,acpi_cpufreq,powernow_k8,"
    "aesni_intel,crc32_pclmul,crct10dif_pclmul,ghash_clmulni_intel,sha256_ssse3,sha512_ssse3"
)
# The docstring says why.
EMULATED_CPU: Final = "max,-erms,-fsrm"
EMULATOR: Final = "tcg,tb-size=64"
EMULATED_KERNEL: Final = ("clocksource=tsc", "tsc=reliable", "clearcpuid=rep_good", "cgroup.memory=nokmem")


def compose(
    config: VmConfig, kernel: Path, kvm: bool, work: Path, kernel_log: Path, swap_socket: Path | None
) -> list[str]:
    """QEMU's command line, from a dry run of virtme-run, with its console turned into the kernel
    log."""
    path = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = f"PATH={path} HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1"
    # By path and without site-packages: it needs none, and reading them over 9p takes seconds.
    script = f"cd {REPOSITORY} && exec env {environment} python -I -S zcache/testvm/guest.py {JOB_MOUNT}\n"
    (work / "job" / "command").write_text(script)
    argv = [f"{sys.prefix}/bin/virtme-run", "--dry-run", "--show-command", "--show-boot-console"]
    # 9p by name: virtme would try virtiofs first, and fall back or not as the host's virtiofsd
    # pleases.
    argv += f"--kimg {kernel} --mods=auto --force-9p --memory {config.memory} --cpus {config.cpus}".split()
    argv += [] if kvm else ["--disable-kvm"]
    argv += [f"--rwdir={JOB_MOUNT}={work / 'job'}", f"--rodir={REPOSITORY}={REPOSITORY}"]
    argv += [] if config.share is None else [f"--rwdir={config.share}={config.share}"]
    argv += [f"--kopt={word}" for word in _kernel_args(config, kvm)]
    argv += ["--save-initramfs", str(work / "initramfs"), "--script-sh", f"sh {JOB_MOUNT}/command"]
    # virtme's temporary files go where ours do, and away with them.
    argv = ["env", f"TMPDIR={work}", *argv]
    composed = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if composed.returncode != 0:
        reason = (composed.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentProblem(f"virtme-run could not compose the machine: {reason}")
    qemu = shlex.split(composed.stdout.splitlines()[-1])
    if not kvm:
        assert qemu.count("max") == 1, qemu
        qemu[qemu.index("max")] = EMULATED_CPU
        qemu += ["-accel", EMULATOR]
    console = "file,id=console,path=/proc/self/fd/2"
    assert qemu.count(console) == 1, qemu
    if config.systemd:
        append = qemu.index("-append") + 1
        qemu[append] = re.sub(r"\binit=\S+", f"init={SYSTEMD_INIT}", qemu[append])
    log_path = str(kernel_log.absolute()).replace(",", ",,")
    qemu[qemu.index(console)] = f"file,id=console,path={log_path}"
    qemu += ["-nodefaults", "-qmp", f"unix:{work}/qmp,server=on,wait=off"]
    if config.network:
        # A real driver's path through the guest; on the host a process's sockets, for which nobody
        # has to be root.
        qemu += ["-netdev", "user,id=network,ipv6=off", "-device", "virtio-net-pci,netdev=network,romfile="]
    for index, disk in enumerate(config.disks):
        qemu += _disk_args(f"vmdisk{index}", {"driver": "file", "filename": str(disk.absolute())})
    if swap_socket is not None:
        address = {"type": "unix", "path": str(swap_socket)}
        qemu += _disk_args(SWAP_SERIAL, {"driver": "nbd", "server": address})
    return qemu


def _kernel_args(config: VmConfig, kvm: bool) -> list[str]:
    words = [] if kvm else [*EMULATED_KERNEL]
    words += ["ignore_loglevel", "sysrq_always_enabled", "unknown_nmi_panic", "mitigations=off"]
    words += [f"module_blacklist={SKIPPED_MODULES}"]
    words += ["sysctl.kernel.hung_task_timeout_secs=60", "sysctl.kernel.hung_task_warnings=-1"]
    if config.systemd:
        words += ["systemd.unit=zcache-vm.service", "systemd.log_target=kmsg", "systemd.show_status=false"]
        words += ["printk.devkmsg=on"]
    if config.hung_task_panic:
        words += ["sysctl.kernel.hung_task_panic=1", "oops=panic", "panic_print=1"]
    return [*words, *config.kernel_args]


def _disk_args(serial: str, protocol: dict[str, Any]) -> list[str]:
    """A virtio disk. Flushes are not passed on: nothing here has to outlive the host, and O_DIRECT,
    the other honest choice, does not work on every file system that a temporary image may lie
    on."""
    cache = {"direct": False, "no-flush": protocol["driver"] == "file"}
    node = {"driver": "raw", "node-name": serial, "discard": "unmap", "cache": cache, "file": protocol}
    protocol |= {"discard": "unmap", "cache": cache}
    device = f"virtio-blk-pci,drive={serial},serial={serial},werror=report,rerror=report"
    return ["-blockdev", json.dumps(node), "-device", device]
