"""One run of one command in a throw-away guest: stock kernel, the host's own root file system
read-only.

virtme-ng composes QEMU's arguments and the initramfs; the process is ours, so that it can be
killed, asked for a dump and outlived. Guarantees: only a command that ended by itself in a guest
that came down cleanly has an exit status, so a panic, a kill, a failed boot or swap that would not
come off never looks like 0; the timeout is kept from outside; the kernel log is in a file on the
host whatever happens, apart from the command's output; no process or temporary file is left behind.

The machine is composed by `machine.py`, which has the traps that shaped it, and run by `qemu.py`.
"""

import compileall
import json
import re
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

from zcache.errors import BadInput
from zcache.testvm import REPOSITORY, VmConfig, VmResult, say
from zcache.testvm.kvm import newest_kernel, usable_kvm
from zcache.testvm.machine import SWAP_SERIAL, compose
from zcache.testvm.qemu import run_qemu
from zcache.testvm.swap_server import swap_server

# What virtme (and QEMU's own option syntax) can carry; spaces and commas would be split on the way.
MOUNTABLE_PATH: Final = re.compile(r"[A-Za-z0-9_+/.-]+")
PANIC_LINE: Final = re.compile(rb"^\[ *\d+\.\d+\](?:\[[^]]*\])? Kernel panic - not syncing", re.MULTILINE)


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
        argv = compose(config, kernel, kvm, work, kernel_log, socket_path)
        mode = "KVM" if kvm else "software emulation"
        release = kernel.name.removeprefix("vmlinuz-").removesuffix("-amd64")
        say(f"booting Debian {release} ({mode}, {config.memory}, {config.cpus} cpus)…")
        qemu_status = run_qemu(
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
        "network": config.network,
    }


def _new_kernel_log() -> Path:
    with tempfile.NamedTemporaryFile(prefix="zcache-vm-kernel-", suffix=".log", delete=False) as log:
        return Path(log.name)


def _sink(stream: BinaryIO | None, descriptor: int) -> BinaryIO:
    if stream is not None:
        return stream
    return (sys.stdout if descriptor == 1 else sys.stderr).buffer
