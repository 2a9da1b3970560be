"""The command line of the test VM: `scripts/vm [options] -- COMMAND…`.

Exit status: the command's own; 124 when time ran out; 125 when the machine failed (panic, no boot,
swap that would not come off, a swap server that ended badly), with one line on stderr; 2 for a
wrong option.
"""

import argparse
import json
import re
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from zcache.errors import ZcacheError
from zcache.linux import standard_streams
from zcache.testvm import HOST_ADDRESS, VmConfig, VmResult
from zcache.testvm.arguments import whole_number
from zcache.testvm.signals import end_in_order
from zcache.testvm.vm import run_in_vm

TIMED_OUT = 124
VM_FAILED = 125
DISK_HELP = (
    "a raw image, or the size (1G) of one to make and remove again; "
    "the guest's /dev/disk/by-id/virtio-vmdisk0 and on; may be repeated"
)
UNIT_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class CommandLine:
    """What was asked for, before the temporary images exist."""

    options: argparse.Namespace
    disks: tuple[Path | int, ...]  # An int is the size, in bytes, of an image to make.
    command: list[str]

    def config(self, disks: tuple[Path, ...]) -> VmConfig:
        options = self.options
        return VmConfig(
            memory=options.memory,
            cpus=options.cpus,
            disks=disks,
            kernel_args=tuple(word for words in options.append for word in words.split()),
            timeout_seconds=options.timeout,
            share=options.share,
            kernel_log=options.kernel_log,
            hung_task_panic=options.hung_task_panic,
            systemd=options.systemd,
            host_swap=None if options.host_swap is None else tuple(options.host_swap),
            network=options.network,
        )


def parse(arguments: list[str]) -> CommandLine:
    """The command is whatever follows the first `--`, word for word: argparse never sees it."""
    parser = _parser()
    if "--" not in arguments:
        if {"-h", "--help"}.intersection(arguments):
            parser.parse_args(["--help"])
        parser.error("the command goes after a --")
    split = arguments.index("--")
    options = parser.parse_args(arguments[:split])
    command = arguments[split + 1 :]
    if not command:
        parser.error("no command after the --")
    if options.status is not None and options.host_swap is None:
        parser.error("--status is the report of the server of --host-swap: give both")
    return CommandLine(options, tuple(options.disk), command)


def main(arguments: list[str]) -> int:
    line = parse(arguments)
    end_in_order()
    try:
        with ExitStack() as cleanup:
            disks = tuple(disk if isinstance(disk, Path) else _sparse_image(disk, cleanup) for disk in line.disks)
            result = run_in_vm(line.config(disks), line.command)
    except ZcacheError as error:
        print(f"vm: {error}", file=sys.stderr)
        return VM_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if line.options.status is not None:
        line.options.status.write_text(json.dumps(result.server_status, indent=2) + "\n")
    if line.options.kernel_log is None and result.exit_status == 0:
        result.kernel_log.unlink()
    return exit_code(result)


def exit_code(result: VmResult) -> int:
    if result.exit_status is not None:
        if result.exit_status:
            print(f"vm: the command ended with {result.exit_status}; kernel log: {result.kernel_log}", file=sys.stderr)
        return result.exit_status
    print(f"vm: {result.failure}; kernel log: {result.kernel_log}", file=sys.stderr)
    return TIMED_OUT if result.timed_out else VM_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/vm",
        usage="%(prog)s [options] -- COMMAND…",
        description="Run COMMAND as root in a throw-away guest with Debian's stock kernel, on this machine's "
        "root file system, read-only. /tmp, /var/tmp and /run are empty and writable.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--memory", type=_memory, default=VmConfig.memory, metavar="900M", help="the guest's memory")
    add("--cpus", type=whole_number(), default=VmConfig.cpus, metavar="2")
    add("--disk", type=_disk, action="append", default=[], metavar="PATH|SIZE", help=DISK_HELP)
    add("--timeout", type=_seconds, default=VmConfig.timeout_seconds, metavar="SECONDS")
    add("--share", type=_absolute, metavar="DIR", help="the guest may write to it, at the same path")
    add("--kernel-log", type=_absolute, metavar="FILE", help="where the guest's kernel log goes")
    add("--append", action="append", default=[], metavar="KERNEL_ARGS", help="more kernel command line")
    add("--hung-task-panic", action="store_true", help="a task blocked for 60 s, or an oops, is a panic")
    add("--systemd", action="store_true", help="the guest runs systemd, and the command under it")
    add("--host-swap", nargs="*", metavar="key=value", help="the guest swaps to a scripts/serve run here")
    add("--network", action="store_true", help=f"a network card; the host's 127.0.0.1 is {HOST_ADDRESS} in the guest")
    add("--status", type=_absolute, metavar="FILE", help="for that server's last status, as JSON")
    return parser


def _sparse_image(size_bytes: int, cleanup: ExitStack) -> Path:
    folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="zcache-vm-disk-"))
    with (Path(folder) / "image").open("wb") as image:
        image.truncate(size_bytes)
    return Path(image.name)


def _disk(text: str) -> Path | int:
    size = re.fullmatch(r"(\d+)([KMGT])", text)
    return int(size[1]) * UNIT_BYTES[size[2]] if size else Path(text).absolute()


def _memory(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[MG]", text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a size such as 900M or 2G")
    return text


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number of seconds above 0")
    return float(text)


def _absolute(text: str) -> Path:
    return Path(text).absolute()


if __name__ == "__main__":
    sys.exit(standard_streams.run("vm", lambda: main(sys.argv[1:]), lost_output=VM_FAILED))
