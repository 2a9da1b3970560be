"""The guest's half of test_sleep.py: suspending and hibernating with the swap on, under load, on a
real kernel.

Runs as root in the test VM, with systemd or without (`main`). The first thing that is not as it
should be is an AssertionError, and exit status 1.

The load touches 600 MiB at random, in shared memory, in a guest of 700; and says at the end whether
any of it changed.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.vm.swap_commands import command, swap_areas
from tests.vm.systemd_unit import systemctl
from zcache.control.ask import ask
from zcache.keeper import frozen
from zcache.keeper.state import StateFolder
from zcache.linux import libc
from zcache.swap import control_groups, hibernation, sleep, sleep_units, sysctls
from zcache.testvm.figures import read_vmstat

POWER = Path("/sys/power")
SWAP = ("size=384M", "budget=64M", "backing=/dev/disk/by-id/virtio-vmdisk0", "hardening=require")
LOAD_MIB = 600
LOAD = """
import ctypes, mmap, os, pathlib, random, signal, sys
pages, choose, until, noise = int(sys.argv[1]) << 8, random.Random(1), pathlib.Path(sys.argv[2]), os.urandom(4096)
ctypes.CDLL(None).mlockall(1)  # the program, not the heap to come: its files may be out of reach by then
memory = mmap.mmap(-1, pages << 12)
for page in range(pages):
    memory[page << 12:(page << 12) + 8] = page.to_bytes(8, "little")
    memory[(page << 12) + 64:(page << 12) + 1064] = noise[page % 3096:][:1000]
print("held", flush=True)
touched = wrong = 0
while touched % 64 or not until.exists():
    page = choose.randrange(pages)
    wrong += int.from_bytes(memory[page << 12:(page << 12) + 8], "little") != page
    touched += 1
print(touched, "touched,", wrong, "wrong", flush=True)
"""
OUTPUT, END = Path("/run/load.out"), Path("/run/load.end")


def run(script: str, *words: str) -> str:
    """What it said. Starting and stopping takes minutes in a guest that shares its processors with
    others."""
    done = subprocess.run(command(script, *words), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{script} {words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@contextlib.contextmanager
def load(slice_name: str | None) -> Iterator[None]:
    """In a service of its own under that slice, or a child of ours; it goes on for the length of
    the block."""
    program = [sys.executable, "-c", LOAD, str(LOAD_MIB), str(END)]
    END.unlink(missing_ok=True)
    OUTPUT.write_text("")
    if slice_name:
        output = f"--property=StandardOutput=append:{OUTPUT}"
        subprocess.run(["systemd-run", "--unit=load", f"--slice={slice_name}", "--quiet", output, *program], check=True)
    else:
        subprocess.Popen(program, stdout=OUTPUT.open("w"))
    wait_until(lambda: "held" in OUTPUT.read_text(), "the load does not come to hold its memory", 600)
    before = read_vmstat()["pswpin"]
    wait_until(lambda: read_vmstat()["pswpin"] > before + 500, "the load does not swap", 200)
    yield
    END.touch()
    wait_until(lambda: "touched" in OUTPUT.read_text(), "the load does not end", 200)
    print(f"load in {slice_name or 'the group of the shell'}: {OUTPUT.read_text().splitlines()[-1]}", flush=True)
    assert OUTPUT.read_text().endswith(" 0 wrong\n")
    if slice_name:
        wait_until(lambda: state_of("load.service") in ("inactive", "failed"), "the load's service does not end", 60)


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def set_level(level: str) -> None:
    """How far a suspend goes until the kernel turns it round, 1 s later."""
    Path("/sys/module/suspend/parameters/pm_test_delay").write_text("1")
    (POWER / "pm_test").write_text(level)


def suspends() -> tuple[int, int]:
    """That succeeded, that failed."""
    stats = POWER / "suspend_stats"
    return int((stats / "success").read_text()), int((stats / "fail").read_text())


def asleep(*words: str) -> str:
    """`zcache sleep`, as by hand; what it said."""
    command_line = [sys.executable, "-P", "-m", "zcache.client.command", "sleep", *words]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and not done.stderr, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


def hibernation_is_refused() -> None:
    """By the kernel, to whoever asks it. Were it not, the machine would hang here."""
    try:
        (POWER / "state").write_text("disk")
    except PermissionError:
        return
    raise AssertionError("it has hibernated, and come back")


def nothing_is_frozen() -> None:
    files = Path("/sys/fs/cgroup").rglob("cgroup.freeze")
    assert [file for file in files if file.read_text() == "1\n"] == []
    assert not StateFolder().frozen.exists()
    assert not any(Path("/sys/fs/cgroup").rglob(control_groups.PARKED))


def by_hand(level: str, count: int) -> None:
    """Without systemd everything is in the root group, the load and this program, too."""
    assert "nothing to do" in asleep("pre")
    run("swap-up", *SWAP)
    hibernation_is_refused()
    set_level(level)
    succeeded, failed = suspends()
    with load(None):
        for _ in range(count):
            said = asleep("pre")
            assert "1 control groups frozen" in said, said
            (POWER / "state").write_text("freeze")
            asleep("post")
            nothing_is_frozen()
            print(said, flush=True)
            before = read_vmstat()["pswpin"]
            wait_until(lambda: read_vmstat()["pswpin"] > before + 100, "the load does not go on", 200)  # noqa: B023
    assert suspends() == (succeeded + count, failed)
    forgotten()
    assert ask(StateFolder().control, "check")["balanced"]
    run("swap-down")
    assert swap_areas() == []


def forgotten() -> None:
    """Frozen, and nobody runs `post`: the keeper thaws."""
    group = Path("/sys/fs/cgroup/forgotten")
    group.mkdir()
    frozen.write(StateFolder().frozen, [group], seconds=3)
    (group / "cgroup.freeze").write_text("1")
    wait_until(lambda: (group / "cgroup.freeze").read_text() == "0\n", "the keeper does not thaw", 60)
    group.rmdir()
    nothing_is_frozen()
    assert "nobody did" in StateFolder().log.read_text()


def under_systemd(level: str, count: int) -> None:
    """Half of the suspends with the load in system.slice, half in user.slice; logind says no to
    hibernation."""
    os.environ["SYSTEMD_BUS_TIMEOUT"] = "300s"  # 25 s are not enough for a guest that shares its processors
    drop_in = Path("/run/systemd/system/systemd-logind.service.d/vm.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nStateDirectory=\nPrivateTmp=no\nWatchdogSec=0\n")  # /var cannot be written to here
    systemctl("daemon-reload")
    systemctl("start", "dbus.service", "systemd-logind.service")
    for unit in UNITS:
        assert not drop_ins(unit), unit
    run("swap-up", *SWAP)
    for unit in UNITS:
        assert drop_ins(unit) == [f"/run/systemd/system/{unit}.d/{sleep_units.NAME}"]
    hibernation_is_refused()
    sleep_conf = Path("/run/systemd/sleep.conf.d") / sleep_units.NAME
    assert can_hibernate() != "yes"
    sleep_conf.rename(aside := Path("/run/aside"))
    print(f"without the drop-in logind would say {can_hibernate()} to hibernation", flush=True)
    aside.rename(sleep_conf)
    assert subprocess.run(["systemctl", "hibernate"], capture_output=True, check=False).returncode
    set_level(level)
    for slice_name in ("system.slice", "user.slice"):
        with load(slice_name):
            for number in range(count // 2):
                suspend(f"{slice_name}, {number + 1}")
    assert ask(StateFolder().control, "check")["balanced"]
    run("swap-down")
    assert swap_areas() == [] and not sleep_conf.parent.exists()
    for unit in UNITS:
        assert not drop_ins(unit), unit
    subprocess.run(["modprobe", hibernation.MODULE], check=True)
    assert hibernation.injection().read_text() == "0\n"


def suspend(what: str) -> None:
    """As a user does; until all is over."""
    succeeded, failed = suspends()
    begin = time.monotonic()
    systemctl("suspend")
    wait_until(lambda: sum(suspends()) > succeeded + failed or state_of(UNITS[0]) == "failed", "no suspend", 200)
    wait_until(lambda: state_of(UNITS[0]) not in ("activating", "deactivating"), "the suspend does not end", 100)
    assert (suspends(), state_of(UNITS[0])) == ((succeeded + 1, failed), "inactive"), systemctl("status", UNITS[0])
    nothing_is_frozen()
    wait_until(lambda: "true" not in logind("get-property", MANAGER, "PreparingForSleep"), "logind does not end it", 60)
    print(f"suspended and awake again, {what}: {time.monotonic() - begin:.0f} s", flush=True)


UNITS = [f"systemd-{name}.service" for name in sleep_units.UNITS]
MANAGER = "org.freedesktop.login1.Manager"


def drop_ins(unit: str) -> list[str]:
    return systemctl("show", "--property=DropInPaths", "--value", unit).split()


def state_of(unit: str) -> str:
    return systemctl("show", "--property=ActiveState", "--value", unit).strip()


def can_hibernate() -> str:
    return logind("call", MANAGER, "CanHibernate").split()[1].strip('"')


def logind(verb: str, *words: str) -> str:
    call = ["busctl", verb, "org.freedesktop.login1", "/org/freedesktop/login1", *words]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, (call, done.stderr)
    return done.stdout


def hibernating(_level: str, _count: int) -> None:
    """Who asks for it may: `zcache sleep` takes the swap off before, and turns it on again. The
    kernel turns round when all is frozen, and memory for an image has been found."""
    run("swap-up", "--hibernate", "--priority", "7", *SWAP)
    hibernation_is_refused()
    set_level("freezer")
    asleep("pre", "--hibernate")
    assert swap_areas() == []
    (POWER / "state").write_text("disk")
    asleep("post", "--hibernate")
    assert Path("/proc/swaps").read_text().split()[-1] == "7"
    hibernation_is_refused()
    run("swap-down")
    nothing_is_frozen()


def devices(_level: str, _count: int) -> None:
    """Devices are suspended, too. The guest's file system does not outlive that: 9p over virtio has
    no code for it. So nothing is started or read from then on; what came of it goes to the kernel
    log, and the machine off."""
    run("swap-up", *SWAP)
    set_level("devices")
    areas = sleep.find_areas(sysctls.holders())
    around = sleep.Sleep(areas, sleep.Machine(control_groups.version_2()))
    succeeded, failed = suspends()
    with load(None), Path("/dev/kmsg").open("w") as log:
        libc.mlockall(libc.MCL_CURRENT | libc.MCL_FUTURE)
        around.pre()
        around.post()  # all that it needs is loaded by now
        around.pre()
        (POWER / "state").write_text("freeze")
        around.post()
        before = read_vmstat()["pswpin"]
        wait_until(lambda: read_vmstat()["pswpin"] > before + 500, "the load does not go on", 200)
        END.touch()
        wait_until(lambda: OUTPUT.read_text().endswith(" 0 wrong\n"), "the load is not as it was", 200)
        assert suspends() == (succeeded + 1, failed)
        log.write(f"{DEVICES_PASSED}\n")
        log.flush()
        Path("/proc/sysrq-trigger").write_text("o")
        time.sleep(100)


DEVICES_PASSED = "zcache: suspended with devices, and the load is as it was"
SCENES = {scene.__name__: scene for scene in (by_hand, under_systemd, hibernating, devices)}


def main(words: list[str]) -> None:
    """A level of /sys/power/pm_test; then scenes, each with how many suspends: `by_hand:3`."""
    level, *scenes = words
    for scene in scenes:
        name, _, count = scene.partition(":")
        begin = time.monotonic()
        SCENES[name](level, int(count or 0))
        print(f"{scene}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
