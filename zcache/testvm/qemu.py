"""QEMU as a process of ours: its output copied as it comes, its guest's tasks dumped when the time
is out, and its end.

QEMU's `file` chardev would destroy the caller's log (machine.py has that trap), so it is given
pipes, which threads copy.
"""

import json
import os
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

from zcache.testvm import say

# A dump of every task through the emulated serial port is some 100 KiB, at about 1 MiB/s.
DUMP_DEADLINE_SECONDS: Final = 20


def run_qemu(
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
