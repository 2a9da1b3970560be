"""One run of one command in a throw-away guest: stock kernel, the host's own root file system
read-only.

virtme-ng composes QEMU's arguments and the initramfs; the process is ours, so that it can be
killed, asked for a dump and outlived. Guarantees: only a command that ended by itself in a guest
that came down cleanly has an exit status, so a panic, a kill, a failed boot or swap that would not
come off never looks like 0; the timeout is kept from outside; the kernel log is in a file on the
host whatever happens, apart from the command's output; no process or temporary file is left behind.

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

import compileall
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from zcache.errors import BadInput, EnvironmentProblem
from zcache.testvm import REPOSITORY, VmConfig, VmResult, say
from zcache.testvm.kvm import newest_kernel, usable_kvm
from zcache.testvm.swap_server import swap_server

# A short mount point in the guest's /run, which virtme makes a tmpfs.
JOB_MOUNT = Path("/run/zcache-vm")
SYSTEMD_INIT = REPOSITORY / "zcache/testvm/systemd_init"
SWAP_SERIAL = "zcacheswap"
# A dump of every task through the emulated serial port is some 100 KiB, at about 1 MiB/s.
DUMP_DEADLINE_SECONDS = 20
SKIPPED_MODULES = (
    "kvm,kvm_amd,kvm_intel,libata,lpc_ich,i2c_i801,i6300esb,pcspkr,psmouse,evdev,acpi_cpufreq,powernow_k8,"
    "aesni_intel,crc32_pclmul,crct10dif_pclmul,ghash_clmulni_intel,sha256_ssse3,sha512_ssse3"
)
# What virtme (and QEMU's own option syntax) can carry; spaces and commas would be split on the way.
MOUNTABLE_PATH = re.compile(r"[A-Za-z0-9_+/.-]+")
# The docstring says why.
EMULATED_CPU = "max,-erms,-fsrm"
EMULATOR = "tcg,tb-size=64"
EMULATED_KERNEL = ("clocksource=tsc", "tsc=reliable", "clearcpuid=rep_good", "cgroup.memory=nokmem")
PANIC_LINE = re.compile(rb"^\[ *\d+\.\d+\](?:\[[^]]*\])? Kernel panic - not syncing", re.MULTILINE)


def run_in_vm(
    config: VmConfig, command: list[str], stdout: BinaryIO | None = None, stderr: BinaryIO | None = None
) -> VmResult:
    """Boot, run the command as root in the repository, shut down; its output goes, live, to the
    streams."""
    _refuse_the_impossible(config, command)
    kernel, kvm = newest_kernel(), usable_kvm()
    kernel_log = config.kernel_log or _new_kernel_log()
    kernel_log.parent.mkdir(parents=True, exist_ok=True)
    kernel_log.write_bytes(b"")
    start = time.monotonic()
    with ExitStack() as cleanup:
        work = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="zcache-vm-")))
        job = work / "job"
        job.mkdir()
        (job / "job.json").write_text(json.dumps(_job(config, command)))
        server = None
        if config.host_swap is not None:
            server = cleanup.enter_context(swap_server(config.host_swap, work))
        # It sees the tree read-only: what has no bytecode it would compile anew at each start of a
        # program.
        for folder in ("zcache", "nbd_plugin", "tests"):
            compileall.compile_dir(REPOSITORY / folder, quiet=2)
        socket_path = server.socket if server else config.host_socket
        argv = _compose(config, kernel, kvm, work, kernel_log, socket_path)
        mode = "KVM" if kvm else "software emulation"
        release = kernel.name.removeprefix("vmlinuz-").removesuffix("-amd64")
        say(f"booting Debian {release} ({mode}, {config.memory}, {config.cpus} cpus)…")
        qemu_status = _run_qemu(
            argv, work, kernel_log, start + config.timeout_seconds, _sink(stdout, 1), _sink(stderr, 2)
        )
        server_status, server_exit_status = server.finish() if server else (None, None)
        timed_out = qemu_status is None
        panicked = PANIC_LINE.search(kernel_log.read_bytes()) is not None
        status, failure = _verdict(config, job, qemu_status, panicked, server_exit_status)
    seconds = time.monotonic() - start
    return VmResult(status, timed_out, panicked, kernel_log, seconds, failure, server_status, server_exit_status)


def _verdict(
    config: VmConfig, job: Path, qemu_status: int | None, panicked: bool, server_exit_status: int | None
) -> tuple[int | None, str | None]:
    """(exit status, None) when everything went right, else (None, the first thing that went
    wrong)."""
    if qemu_status is None:
        return None, f"no end after {config.timeout_seconds:g} s"
    if panicked:
        return None, "the guest's kernel panicked"
    if qemu_status != 0:
        return None, f"QEMU ended with status {qemu_status}"
    try:
        result: dict[str, Any] = json.loads((job / "result.json").read_text())
    except FileNotFoundError:
        if (job / "started").exists():
            return None, "the guest went down before the command ended"
        return None, "the guest did not get as far as the command"
    if "error" in result:
        return None, f"in the guest: {result['error']}"
    if server_exit_status not in (None, 0):
        return None, f"the swap server ended with status {server_exit_status}"
    return int(result["exit_status"]), None


def _refuse_the_impossible(config: VmConfig, command: list[str]) -> None:
    if not command:
        raise BadInput("no command to run")
    for path in (REPOSITORY, config.share):
        if path is not None and not (path.is_absolute() and MOUNTABLE_PATH.fullmatch(str(path))):
            raise BadInput(f"{path}: the guest only sees absolute paths made of A-Z a-z 0-9 _ + / . -")
    if config.share is not None and not config.share.is_dir():
        raise BadInput(f"{config.share}: the shared folder does not exist")
    for disk in config.disks:
        if not disk.exists():
            raise BadInput(f"{disk}: no such disk image")


def _job(config: VmConfig, command: list[str]) -> dict[str, Any]:
    keep = [REPOSITORY] if config.share is None else [REPOSITORY, config.share]
    return {
        "command": command,
        "keep": [str(path) for path in keep],
        "swap_serial": SWAP_SERIAL if config.host_swap is not None or config.host_socket else None,
    }


# Composing the machine


def _compose(
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


# Running it


def _run_qemu(
    argv: list[str], work: Path, kernel_log: Path, deadline: float, stdout: BinaryIO, stderr: BinaryIO
) -> int | None:
    """QEMU's exit status, or None when the deadline ended it."""
    # A process group of its own keeps the terminal's Ctrl-C for us; setpriv ends it even if we are
    # killed.
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as qemu:
        assert qemu.stdout is not None and qemu.stderr is not None
        pairs = ((qemu.stdout, stdout), (qemu.stderr, stderr))
        copiers = [threading.Thread(target=_copy, args=pair, daemon=True) for pair in pairs]
        for copier in copiers:
            copier.start()
        try:
            return _wait_for_end(qemu, work / "job" / "started", deadline)
        except TimeoutError:
            say(f"out of time: dumping the guest's tasks into {kernel_log}")
            dump_tasks(work / "qmp", kernel_log)
            return None
        finally:
            qemu.kill()  # Does nothing to one that has ended.
            for copier in copiers:
                copier.join()


def _wait_for_end(qemu: subprocess.Popen[bytes], started: Path, deadline: float) -> int:
    boot_start = time.monotonic()
    announced = False
    while True:
        try:
            return qemu.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            pass
        if not announced and started.exists():
            say(f"command starts, after {time.monotonic() - boot_start:.0f} s")
            announced = True
        if time.monotonic() > deadline:
            raise TimeoutError


def _copy(source: IO[bytes], sink: BinaryIO) -> None:
    """Drains the source even when the sink takes no more (nobody reads it, its disk is full): a
    full pipe would stop the guest."""
    while chunk := os.read(source.fileno(), 65536):
        with suppress(OSError):  # the last flush of a command's output meets it again
            sink.write(chunk)
            sink.flush()


def dump_tasks(qmp: Path, kernel_log: Path) -> None:
    """Have the kernel log its memory, blocked tasks, CPUs and all tasks, through the keyboard's
    SysRq.

    It needs interrupts, but neither user space nor memory. If nothing comes, an NMI panics the
    guest.
    """
    before = kernel_log.stat().st_size
    try:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(5)
            monitor.connect(str(qmp))
            replies = monitor.makefile("rb")
            replies.readline()
            _ask(monitor, replies, "qmp_capabilities")
            for letter in "mwlt":
                keys = [{"type": "qcode", "data": key} for key in ("alt", "sysrq", letter)]
                _ask(monitor, replies, "send-key", keys=keys)
                _wait_until_quiet(kernel_log)
            if kernel_log.stat().st_size == before:
                _ask(monitor, replies, "inject-nmi")
                _wait_until_quiet(kernel_log)
    except OSError as error:
        say(f"QEMU's monitor did not answer: {error}")


def _ask(monitor: socket.socket, replies: IO[bytes], execute: str, **arguments: Any) -> None:
    monitor.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
    # Events come in between; an answer has one of these two keys.
    for line in replies:
        if not {"return", "error"}.isdisjoint(json.loads(line)):
            return
    raise ConnectionResetError("closed")


def _wait_until_quiet(log: Path) -> None:
    deadline = time.monotonic() + DUMP_DEADLINE_SECONDS
    size = -1
    while size != log.stat().st_size and time.monotonic() < deadline:
        size = log.stat().st_size
        time.sleep(1)


def _new_kernel_log() -> Path:
    with tempfile.NamedTemporaryFile(prefix="zcache-vm-kernel-", suffix=".log", delete=False) as log:
        return Path(log.name)


def _sink(stream: BinaryIO | None, descriptor: int) -> BinaryIO:
    if stream is not None:
        return stream
    return (sys.stdout if descriptor == 1 else sys.stderr).buffer
