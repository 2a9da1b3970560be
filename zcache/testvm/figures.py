"""What the guest's kernel counts: read before and after a load."""

from pathlib import Path
from typing import Final

#: Threads of a server that take memory, or wait for it, for nobody who waits for them.
_MAY_FAULT: Final = ("zcache-upkeep", "zcache-breath", "zcache-beat", "zcache-control", "zcache-log")


def read_vmstat() -> dict[str, int]:
    """/proc/vmstat: `pswpout` and `pswpin` are in pages."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def read_netstat() -> dict[str, int]:
    """/proc/net/netstat: `PFMemallocDrop` are packets that came, and were dropped because the
    memory that they took was the kernel's reserve; `TCPTimeouts`, what was sent again for want of
    an answer."""
    lines = Path("/proc/net/netstat").read_text().splitlines()
    figures: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        figures |= {name: int(value) for name, value in zip(names.split()[1:], values.split()[1:], strict=True)}
    return figures


def read_meminfo_kib() -> dict[str, int]:
    """/proc/meminfo, in KiB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name.rstrip(":"): int(value) for name, value, *_ in (line.split() for line in lines)}


def status_kib(pid: int, name: str) -> int:
    """What /proc/PID/status says of a process: VmRSS, RssAnon, …"""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


def own_kib(pid: int) -> int:
    """A process's memory without the image: its share of what it has (Pss), anonymous and of
    files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(value) for name, value, _ in (line.split() for line in lines)}
    return sizes["Pss_Anon:"] + sizes["Pss_File:"]


def others_in_group(pid: int) -> list[int]:
    """The processes of a process's control group (cgroup v2) beside it."""
    group = Path(f"/proc/{pid}/cgroup").read_text().strip().rpartition("0::/")[2]
    pids = (Path("/sys/fs/cgroup") / group / "cgroup.procs").read_text().split()
    return [int(other) for other in pids if int(other) != pid]


def page_faults(pid: int) -> int:
    """Page faults so far, minor and major, of the threads of a server that a request may wait for.

    Those that populate memory ahead or for a budget that grows, beat, answer on the control socket
    or write the log may fault as they like. (Fields 10 and 12 of /proc/PID/task/TID/stat.)
    """
    faults = 0
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        head, _, tail = stat.read_text().rpartition(")")
        if head.partition("(")[2] not in _MAY_FAULT:
            fields = tail.split()
            faults += int(fields[7]) + int(fields[9])
    return faults
