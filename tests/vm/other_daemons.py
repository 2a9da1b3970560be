"""The guest's half of test_other_daemons.py: the unit that is shipped, beside daemons that end
programs or restart services: systemd-oomd, earlyoom, nohang and needrestart, each as its Debian
package has it.

Under systemd, as root, the scenes that are named, or all; FOLDER is where `DAEMONS` and `PERL` are
unpacked:

    scripts/vm --systemd --memory 700M --disk 192M --timeout 2400 --share FOLDER -- \\
        .venv/bin/python -m tests.vm.other_daemons FOLDER

After each scene keeper, server and standby are the processes that they were, and the books balance.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.vm.swap_commands import servers, serving, swap_areas
from tests.vm.systemd_unit import ENVIRONMENT, UNITS, install, systemctl
from zcache.control.ask import ask
from zcache.keeper.state import StateFolder
from zcache.linux import process
from zcache.linux.process import ProcessIdentity

DAEMONS = ("systemd-oomd", "earlyoom", "nohang", "needrestart")
#: What needrestart takes.
PERL = (
    "gettext-base",
    "libintl-perl",
    "libmodule-find-perl",
    "libproc-processtable-perl",
    "libsort-naturally-perl",
    "libterm-readkey-perl",
)
#: Where they are in the guest: what a unit of theirs hides (/tmp, /home) is elsewhere.
PROGRAMS = Path("/run/packages")
#: zcache.service is in it, so that it can be watched without everything else.
SLICE = "watched.slice"
GROUP = Path("/sys/fs/cgroup") / SLICE / "zcache.service"
REPOSITORY = Path(__file__).resolve().parents[2]

#: Takes memory that does not compress until both memory and swap are short, some more whenever they
#: are not; slowly at the end, as those who watch look some times a second only.
HOG = """
import os, time
noise, held = os.urandom(1 << 20), []
while True:
    with open("/proc/meminfo") as lines:
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    if kib["SwapFree"] * 100 < 15 * kib["SwapTotal"]:
        time.sleep(0.2)
    held.append(bytearray(noise))
"""
#: Touches more than it may have in RAM, so that it waits for memory most of the time.
THRASHER = """
import os
pages = bytearray(os.urandom(1 << 20) * 96)
while True:
    for place in range(0, len(pages), 4096):
        pages[place] = pages[place] + 1 & 255
"""


def processes() -> tuple[ProcessIdentity, ...]:
    """Keeper, server and standby."""
    state = StateFolder().load()
    assert state
    return (state.keeper, *filter(None, map(process.identify, sorted(servers()))))


def is_untouched(before: tuple[ProcessIdentity, ...]) -> None:
    assert len(swap_areas()) == 1
    assert systemctl("is-active", "zcache") == "active\n"
    assert processes() == before and len(before) == 3, (processes(), before)
    assert process.is_running(before[0])
    assert serving() in [each.pid for each in before]
    assert ask(StateFolder().control, "check")["balanced"]


def shipped(unit: str) -> Path:
    """Debian 12 has it in /lib, 13 in /usr/lib."""
    return next(PROGRAMS.rglob(f"lib/systemd/system/{unit}"))


def start_package(unit: str, *settings: str) -> Path:
    """The package's own unit, with its files where they are here; its log."""
    text = shipped(unit).read_text()
    text = re.sub(r"(?<=[= ])(?=/usr/s?bin/|/etc/nohang/|(?:/usr)?/lib/systemd/systemd-oomd)", str(PROGRAMS), text)
    text = re.sub(r"^User=.*", "User=root", text, flags=re.MULTILINE)  # it was not installed: nobody made its user
    log = Path(f"/run/{unit}.log")
    log.write_text("")  # it may have run before
    (UNITS / unit).write_text(text)
    drop_in = UNITS / f"{unit}.d"
    drop_in.mkdir(exist_ok=True)
    lines = ("[Service]", f"StandardOutput=append:{log}", "StandardError=inherit", "LogLevelMax=debug", *settings)
    (drop_in / "log.conf").write_text("\n".join(lines) + "\n")
    systemctl("daemon-reload")
    systemctl("start", unit)
    return log


def start_oomd() -> Path:
    shutil.copy(shipped("systemd-oomd.socket"), UNITS)
    # It may have more patience with pressure than this test.
    folder = Path("/run/systemd/oomd.conf.d")
    folder.mkdir(exist_ok=True)
    (folder / "patience.conf").write_text("[OOM]\nDefaultMemoryPressureDurationSec=1s\n")
    return start_package("systemd-oomd.service", "Environment=SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=debug")


def set_slice(name: str, *settings: str) -> None:
    folder = UNITS / f"{name}.d"
    folder.mkdir(exist_ok=True)
    (folder / "watch.conf").write_text("\n".join(("[Slice]", *settings)) + "\n")
    systemctl("daemon-reload")


def run_out_of_memory() -> None:
    """Until somebody ends the program that takes it all."""
    subprocess.run(["systemd-run", "--unit=hog", "--quiet", sys.executable, "-c", HOG], check=True)
    wait_until(lambda: is_over("hog"), "nobody has ended the hog")
    print(f"  {systemctl('show', '--property=Result', 'hog').strip()}", flush=True)
    # Where it has failed: one that ended by SIGTERM has not, and is forgotten already.
    subprocess.run(["systemctl", "reset-failed", "hog"], capture_output=True, check=False)


def is_over(unit: str) -> bool:
    done = subprocess.run(["systemctl", "is-active", unit], capture_output=True, text=True, check=False)
    return done.stdout.strip() not in ("active", "activating", "deactivating")


def wait_until(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def oomd_by_swap() -> None:
    """Debian 12 has it watch all groups for those that have much in swap."""
    set_slice("-.slice", "ManagedOOMSwap=kill")
    log = start_oomd()
    run_out_of_memory()
    show(log, "Killed|Considered")
    assert re.search(r"Killed /system.slice/hog.service due to memory used", log.read_text()), log.read_text()
    systemctl("stop", "systemd-oomd.service", "systemd-oomd.socket")
    set_slice("-.slice", "ManagedOOMSwap=auto")


def oomd_by_pressure() -> None:
    """It is to end something in a slice where there is zcache, and a program that it has been told
    to omit: nothing."""
    set_slice(SLICE, "ManagedOOMMemoryPressure=kill", "ManagedOOMMemoryPressureLimit=1%")
    log = start_oomd()
    options = ["--unit=thrasher", f"--slice={SLICE}", "-p", "MemoryHigh=48M", "-p", "ManagedOOMPreference=omit"]
    subprocess.run(["systemd-run", "--quiet", *options, sys.executable, "-c", THRASHER], check=True)
    wait_until(lambda: "Considered " in log.read_text(), "no pressure")
    show(log, "Killed|Considered|Memory pressure for")
    assert set(re.findall(r"Considered (\d+) cgroups", log.read_text())) == {"0"}
    systemctl("stop", "thrasher", "systemd-oomd.service", "systemd-oomd.socket")
    set_slice(SLICE, "ManagedOOMMemoryPressure=auto")


def earlyoom() -> None:
    log = start_package("earlyoom.service")
    run_out_of_memory()
    show(log, "sending|low memory")
    assert re.search(r"sending SIG(TERM|KILL) to process \d+ uid 0 \"python", log.read_text()), log.read_text()
    systemctl("stop", "earlyoom.service")


def nohang() -> None:
    log = start_package("nohang.service")
    wait_until(lambda: "Monitoring has started" in log.read_text(), "nohang does not start")
    run_out_of_memory()
    show(log, "Sending|TOP|python|nbdkit")
    assert re.search(r"Sending SIG(TERM|KILL) to the victim", log.read_text()), log.read_text()
    systemctl("stop", "nohang.service")


def kernel() -> None:
    """Its OOM killer ends a command in the unit's group (a reload's, say); the unit goes on, and
    the swap with it."""
    join = f"echo $$ > {GROUP}/cgroup.procs; echo 1000 > /proc/self/oom_score_adj; exec sleep 600"
    with subprocess.Popen(["sh", "-c", join]) as command:
        wait_until(lambda: str(command.pid) in (GROUP / "cgroup.procs").read_text().split(), "it does not join")
        Path("/proc/sysrq-trigger").write_text("f")
        command.wait(60)
    time.sleep(5)  # for systemd to act on it


def needrestart() -> None:
    """A program in the unit's group runs from a file that is gone, as after an upgrade; told to
    restart by itself what it finds, needrestart names the unit, and does nothing to it."""
    program = Path("/tmp/gone")
    shutil.copy("/usr/bin/sleep", program)
    subprocess.run(["sh", "-c", f"echo $$ > {GROUP}/cgroup.procs; setsid -f {program} 600"], check=True)
    wait_until(lambda: b"gone" in b"".join(map(command_line, pids())), "it does not run")
    program.unlink()
    for folder in ("upper", "work"):
        Path("/run/etc", folder).mkdir(parents=True)
    layers = "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", "/etc"], check=True)
    shutil.copytree(PROGRAMS / "etc/needrestart", "/etc/needrestart")
    perl = [PROGRAMS / "usr/share/perl5", *PROGRAMS.glob("usr/lib/*/perl5/*")]
    environment = {**os.environ, "PERL5LIB": ":".join(map(str, perl)), "DEBIAN_FRONTEND": "noninteractive"}

    def say(mode: str) -> str:
        command = ["perl", str(PROGRAMS / "usr/sbin/needrestart"), "-l", "-v", "-m", "a", "-r", mode]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        return done.stdout + done.stderr

    said = say("l")
    assert re.search(r"Services to be restarted:\n(?s:.*)systemctl restart zcache.service", said), said
    snippet = Path("/etc/needrestart/conf.d/zcache.conf")
    shutil.copy(REPOSITORY / "scripts/systemd/needrestart.conf", snippet)
    said = say("a")
    print(said[said.index("Service restarts being deferred") :].partition("\n\n")[0], flush=True)
    assert re.search(r"Service restarts being deferred:\n(?s:.*)systemctl restart zcache.service", said), said


def pids() -> list[int]:
    return [int(pid) for pid in (GROUP / "cgroup.procs").read_text().split()]


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def show(log: Path, pattern: str) -> None:
    print(*(f"  {line}" for line in log.read_text().splitlines() if re.search(pattern, line)), sep="\n", flush=True)


SCENES = {scene.__name__: scene for scene in (needrestart, kernel, oomd_by_pressure, oomd_by_swap, earlyoom, nohang)}


def main(folder: Path, names: list[str]) -> int:
    shutil.copytree(folder, PROGRAMS, ignore=shutil.ignore_patterns("archives"), symlinks=True)
    install()
    (UNITS / "zcache.service.d/slice.conf").write_text(f"[Service]\nSlice={SLICE}\n")
    ENVIRONMENT.write_text("ZCACHE=size=128M budget=48M backing=/dev/disk/by-id/virtio-vmdisk0 hardening=require\n")
    systemctl("daemon-reload")
    systemctl("start", "zcache")
    wait_until(lambda: len(servers()) == 2, "no standby")
    before = processes()
    for name in names or SCENES:
        begin = time.monotonic()
        print(f"{name}:", flush=True)
        SCENES[name]()
        is_untouched(before)
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
