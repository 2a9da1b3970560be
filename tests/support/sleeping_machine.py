"""A tree of control groups, processes and devices, made of plain files, to be put to sleep."""

import os
from pathlib import Path

from zcache.keeper import frozen
from zcache.swap.sleep import Area, Machine, Sleep
from zcache.swap.taken_off import TakenOff

KEEPER_PID = 700
SERVER_PID = 701
#: This process's: in a namespace of its own the real one may be that of a program here.
OWN_PID = 702
OWN = "system.slice/systemd-suspend.service"
GIB = 1 << 30


class FakeMachine:
    """The folders that `sleep` looks at. Groups freeze as soon as they are told to, but for `stuck`
    ones."""

    def __init__(self, folder: Path) -> None:
        self.root, self.proc, self.sysfs = folder / "cgroup", folder / "proc", folder / "block"
        self.root.mkdir()
        (self.root / "cgroup.controllers").write_text("memory pids\n")
        self.proc.mkdir()
        (self.sysfs / "nbd0").mkdir(parents=True)
        (self.sysfs / "nbd0/inflight").write_text("       0        0\n")
        self.memory_free(GIB)
        self.count_swapped_pages(100)
        self.process(1, "systemd", "init.scope")
        self.process(2, "kthreadd", "", is_kernel=True)
        self.process(KEEPER_PID, "python", "run-zcache")
        self.process(SERVER_PID, "nbdkit", "run-zcache", session=KEEPER_PID)
        self.process(os.getpid(), "zcache", OWN, parent=1)
        folder.joinpath("state").mkdir()
        self.areas = [Area(folder / "state/frozen", KEEPER_PID, TakenOff(folder / "off", "/dev/nbd0", False, False))]

    def memory_free(self, free_bytes: int) -> None:
        (self.proc / "meminfo").write_text(f"MemTotal: {GIB >> 10} kB\nMemFree: {free_bytes >> 10} kB\n")

    def count_swapped_pages(self, count: int) -> None:
        (self.proc / "vmstat").write_text(f"pswpin {count}\npswpout {count}\n")

    def group(self, name: str, swap_bytes: int | None = 0, is_stuck: bool = False) -> Path:
        group = self.root / name
        group.mkdir(parents=True, exist_ok=True)
        if not (group / "cgroup.freeze").exists():
            (group / "cgroup.freeze").write_text("0\n")
        (group / "cgroup.events").write_text(f"populated 1\nfrozen {0 if is_stuck else 1}\n")
        (group / "memory.swap.current").write_text(f"{swap_bytes}\n")
        (group / "memory.reclaim").touch()
        if swap_bytes is None:  # no memory controller
            (group / "memory.swap.current").unlink()
        return group

    def process(
        self,
        pid: int,
        name: str,
        group: str,
        *,
        swap_kib: int = 0,
        parent: int = 1,
        session: int = 0,
        is_kernel: bool = False,
    ) -> None:
        entry = self.proc / str(pid)
        entry.mkdir()
        flags = 0x00200040 if is_kernel else 0x00400100
        (entry / "stat").write_text(f"{pid} ({name}) S {parent} {pid} {session or pid} 0 -1 {flags} 0 0\n")
        (entry / "cgroup").write_text(f"0::/{group}\n")
        (entry / "smaps_rollup").write_text(f"00-ff ---p 00000000 00:00 0 [rollup]\nRss: 1 kB\nSwap: {swap_kib} kB\n")
        (entry / "smaps").write_text("")
        if group and not (self.root / group / "cgroup.freeze").exists():
            self.group(group)

    def program(self, pid: int, name: str, group: str, swap_bytes: int | None = 4096) -> Path:
        """In a group that has something in swap."""
        self.process(pid, name, group)
        return self.group(group, swap_bytes)

    def sleep(self) -> Sleep:
        return Sleep(self.areas, Machine(self.root, self.proc, self.sysfs))

    def asked_to_freeze(self) -> list[str]:
        files = sorted(self.root.rglob("cgroup.freeze"))
        return [str(file.parent.relative_to(self.root)) for file in files if file.read_text().strip() == "1"]

    def recorded(self) -> list[str]:
        found = frozen.read(self.areas[0].record)
        return [str(group.relative_to(self.root)) for group in found[1]] if found else []
