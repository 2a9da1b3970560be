"""The guest's half of test_systemd.py: the unit that is shipped, under a real systemd; or the swap
turned on by hand.

Start, load, reload (an upgrade in place), the death of the server; and at the end memory is still
swapped out, and the machine is told to shut down. What becomes of that is for the other half to
read in the kernel log.

    python -m tests.vm.systemd_unit [forced [by-hand]]

`forced`: without stopping any service, as `systemctl --force` does and as systemd does when it has
lost patience.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.vm.swap_commands import HOG, REPOSITORY, a_limit_that_is_taken_away, command, serving, swap_areas
from zcache.control.ask import ask
from zcache.errors import EnvironmentProblem
from zcache.keeper.state import StateFolder
from zcache.linux.cgroup import SPARED
from zcache.swap import area
from zcache.testvm.figures import read_meminfo_kib, read_vmstat

UNITS = Path("/run/systemd/system")
ENVIRONMENT = Path("/run/zcache.env")
OUTPUT = Path("/run/zcache.out")
#: What the commands say goes to the kernel log, line by line, which alone is there when the machine
#: is not.
DROP_IN = f"""[Service]
StandardOutput=append:{OUTPUT}
StandardError=inherit
ExecStopPost=/bin/sh -c 'while read -r line; do echo "$$line" > /dev/kmsg; done < {OUTPUT}; : > {OUTPUT}'
"""
SCOPE = "run-zcache.scope"
GROUP = Path("/sys/fs/cgroup/system.slice/zcache.service")


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"systemctl {words}: {done.stdout}{done.stderr}"
    return done.stdout


def install() -> None:
    """As the unit's first lines say, in the folders that are writable here."""
    unit = (REPOSITORY / "scripts/systemd/zcache.service").read_text()
    assert "/etc/default/zcache" in unit
    unit = unit.replace("@ROOT@", str(REPOSITORY)).replace("/etc/default/zcache", str(ENVIRONMENT))
    (UNITS / "zcache.service").write_text(unit)
    (UNITS / "zcache.service.d").mkdir()
    (UNITS / "zcache.service.d/output.conf").write_text(DROP_IN)
    ENVIRONMENT.write_text("ZCACHE=size=512M budget=96M backing=/dev/disk/by-id/virtio-vmdisk0 hardening=require\n")
    systemctl("daemon-reload")


def wait_for_another(server_pid: int) -> int:
    """The pid of the server that has taken its place."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.5)
        with contextlib.suppress(EnvironmentProblem):  # nobody answers yet
            pid = serving()
            if pid != server_pid:
                return pid
    raise AssertionError("no other server")


def by_hand() -> None:
    """swap-up without the unit: the keeper is in a scope, whose limit stays."""
    area.run([str(REPOSITORY / "scripts/swap-up"), "size=64M", "budget=64M", "hardening=require"])
    state = StateFolder().load()
    assert state
    group = Path(f"/proc/{state.keeper.pid}/cgroup").read_text().strip()
    assert group == f"0::/system.slice/{SCOPE}", group
    assert "MemorySwapMax=0" in systemctl("show", SCOPE)
    systemctl("daemon-reload")
    a_limit_that_is_taken_away(lambda: systemctl("set-property", "--runtime", SCOPE, "MemorySwapMax=infinity"))
    systemctl("stop", SCOPE)  # ends nobody
    assert ask(StateFolder().control, "check")["balanced"] and swap_areas()
    area.run([str(REPOSITORY / "scripts/swap-down")])
    assert "ActiveState=inactive" in systemctl("show", SCOPE)


def stop_in_the_middle_of_a_reload() -> None:
    """Systemd then leaves ExecStop out."""
    systemctl("reload", "--no-block", "zcache")
    deadline = time.monotonic() + 30
    while "SubState=reload\n" not in systemctl("show", "--property=SubState", "zcache"):
        assert time.monotonic() < deadline, "no reload"
    systemctl("stop", "zcache")
    assert swap_areas() == []
    assert not StateFolder().path.exists()


def fill_swap() -> None:
    """By a service of its own: it is there until the shutdown, and ended by it."""
    hog_mib = (read_meminfo_kib()["MemAvailable"] >> 10) + 200
    hog = [sys.executable, "-c", HOG.replace("input()", "import time; time.sleep(3600)"), str(hog_mib)]
    subprocess.run(["systemd-run", "--unit=hog", "--quiet", *hog], check=True)
    deadline = time.monotonic() + 200
    while read_vmstat()["pswpout"] < 100 * 256:
        assert time.monotonic() < deadline, f"hardly anything is swapped out: {read_vmstat()['pswpout']} pages"
        time.sleep(1)


def turn_on_by_hand() -> None:
    """From a group that systemd has made, as a session's is."""
    words = ENVIRONMENT.read_text().partition("=")[2].split()
    subprocess.run(["systemd-run", "--scope", "--quiet", "--slice=user", *command("swap-up", *words)], check=True)
    assert "OOMPolicy=continue" in systemctl("show", "run-zcache.scope")


def is_marked() -> bool:
    """The keeper's group, for systemd-oomd and for the last round of killing."""
    state = StateFolder().load()
    assert state
    path = Path(f"/proc/{state.keeper.pid}/cgroup").read_text().strip().partition("0::")[2]
    return all(os.getxattr(f"/sys/fs/cgroup{path}", mark) == b"1" for mark in SPARED)


def have_it_forced() -> None:
    """The VM's own unit shuts the machine down when this command has ended."""
    drop_in = UNITS / "zcache-vm.service.d"
    drop_in.mkdir()
    (drop_in / "forced.conf").write_text("[Unit]\nSuccessAction=poweroff-force\n")
    systemctl("daemon-reload")


def shut_down_by_force(by_hand: bool) -> int:
    if by_hand:
        turn_on_by_hand()
    else:
        systemctl("start", "zcache")
    assert is_marked()
    fill_swap()
    have_it_forced()
    print(f"{read_vmstat()['pswpout']} pages out; shutting down by force")
    return 0


def main(words: list[str]) -> int:
    assert systemctl("list-units", "--no-legend", "--plain", "--state=failed,auto-restart") == "", "the VM's own units"
    install()
    if words:
        return shut_down_by_force("by-hand" in words)
    by_hand()
    systemctl("start", "zcache")
    stop_in_the_middle_of_a_reload()
    systemctl("start", "zcache")
    assert len(swap_areas()) == 1
    assert (GROUP / "memory.swap.max").read_text() == "0\n"
    assert is_marked()
    group = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in (GROUP / "cgroup.procs").read_text().split()]
    assert sorted(set(group)) == ["nbdkit", "python"], group
    fill_swap()
    first = serving()
    systemctl("reload", "zcache")
    second = wait_for_another(first)
    os.kill(second, signal.SIGKILL)
    third = wait_for_another(second)
    os.kill(third, signal.SIGTERM)  # as systemd would, if it got at it
    wait_for_another(third)
    assert systemctl("is-active", "zcache", "hog") == "active\nactive\n"
    assert ask(StateFolder().control, "check")["balanced"]
    assert len(swap_areas()) == 1
    print(f"{read_vmstat()['pswpout']} pages out, {read_vmstat()['pswpin']} in; shutting down with the swap on")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
