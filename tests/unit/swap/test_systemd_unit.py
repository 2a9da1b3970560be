"""The unit that is shipped, by systemd's own account where systemd is; and what is shipped beside
it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
UNIT = REPOSITORY / "scripts/systemd/zcache.service"


def test_its_commands_are_there() -> None:
    commands = re.findall(r"^Exec\w+=.*@ROOT@/([\w/-]+)", UNIT.read_text(), re.MULTILINE)
    assert commands == ["scripts/swap-up", "scripts/swap-upgrade", "scripts/swap-down", "scripts/swap-down"]
    assert all((REPOSITORY / command).is_file() for command in commands)


#: What a systemd before 255 says of what only newer ones know, and goes on.
UNKNOWN = re.compile(r"^.*Unknown key 'SurviveFinalKillSignal' in section \[Unit\], ignoring\.\n", re.MULTILINE)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_has_nothing_to_say_against_it(tmp_path: Path) -> None:
    unit = tmp_path / "zcache.service"
    unit.write_text(UNIT.read_text().replace("@ROOT@", str(REPOSITORY)))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    said, count = UNKNOWN.subn("", verified.stderr)
    assert (verified.returncode, said, count) == (0, "", int(int(version.split()[1]) < 255))


def test_whom_it_tells_to_leave_it_alone() -> None:
    """systemd-oomd, the end of any process of its by the OOM killer, and the last round of
    killing."""
    settings = UNIT.read_text().splitlines()
    assert {"ManagedOOMPreference=omit", "OOMPolicy=continue", "SurviveFinalKillSignal=yes"} <= set(settings)


def test_systemd_has_no_reason_of_its_own_to_stop_it_or_to_end_its_processes() -> None:
    """By what the unit says, and by what it must not say. (The scope of a swap-up by hand is in
    test_cgroup.py.)"""
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines)
    assert settings.items() >= {
        ("KillMode", "process"),
        ("SendSIGKILL", "no"),
        ("TasksMax", "infinity"),
        ("TimeoutStopSec", "infinity"),
        ("IgnoreOnIsolate", "yes"),
        ("MemorySwapMax", "0"),
    }
    stopping = re.compile(
        r"Requires|Requisite|BindsTo|PartOf|Conflicts|UpheldBy|StopWhenUnneeded|StopPropagated|JoinsNamespace|Restart$|"
        r"RuntimeMax|Watchdog|Job.*Timeout|Memory(Max|High|Limit)|Limit(CPU|NPROC|AS)|PrivateNetwork|DynamicUser"
    )
    assert [key for key in settings if stopping.match(key)] == []


#: As needrestart itself asks its settings: the first pattern that fits says whether a unit is
#: restarted.
NEEDRESTART = """
our %nrconf = (override_rc => {qr(^dbus) => 0});
defined(do shift) or die $@ || $!;
for my $unit (@ARGV) {
    my ($pattern) = grep { $unit =~ /$_/ } sort keys %{$nrconf{override_rc}};
    print defined $pattern ? $nrconf{override_rc}->{$pattern} : 1;
}
"""


def test_needrestart_is_told_to_leave_the_unit_alone_and_no_other() -> None:
    conf = f"{UNIT.parent}/needrestart.conf"
    units = ["zcache.service", "zcached.service", "my-zcache.service", "dbus.service", "ssh.service"]
    said = subprocess.run(["perl", "-we", NEEDRESTART, conf, *units], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "01101"), said.stderr
