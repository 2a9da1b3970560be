"""What keeps the machine from hibernating, and what systemd is told, on folders of plain files."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from zcache.keeper.state import StateFolder, SwapState
from zcache.linux.process import ProcessIdentity
from zcache.swap import hibernation, sleep_units, sysctls


@pytest.fixture
def power(tmp_path: Path) -> Path:
    power = tmp_path / "power"
    power.mkdir()
    (power / "state").write_text("freeze mem disk\n")
    (power / "disk").write_text("[platform] shutdown reboot suspend test_resume \n")
    return power


@pytest.fixture
def debug(tmp_path: Path) -> Path:
    error = hibernation.injection(tmp_path / "debug")
    error.parent.mkdir(parents=True)
    error.write_text("0\n")
    return tmp_path / "debug"


@pytest.fixture
def modprobes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is loaded and unloaded; each fails."""
    asked: list[list[str]] = []

    def run(words: list[str], check: bool, **_: object) -> None:
        asked.append(words)
        if check:
            raise subprocess.CalledProcessError(1, words)

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_the_kernel_is_made_to_refuse_and_allowed_again(power: Path, debug: Path, modprobes: list[list[str]]) -> None:
    assert hibernation.refuse(power, debug) is None
    assert hibernation.injection(debug).read_text() == "-1"
    hibernation.allow(debug)
    assert hibernation.injection(debug).read_text() == "0"
    assert modprobes == [["modprobe", "-r", "pm-notifier-error-inject"]]


def test_with_secret_memory_there_is_nothing_to_do(power: Path, debug: Path, modprobes: list[list[str]]) -> None:
    (power / "disk").write_text("[disabled]\n")
    assert hibernation.refuse(power, debug) is None
    hibernation.allow(debug)
    assert hibernation.injection(debug).read_text() == "0\n" and not modprobes


@pytest.mark.parametrize("state", ["freeze mem\n", None])
def test_a_kernel_that_cannot_hibernate_needs_no_refusal(power: Path, tmp_path: Path, state: str | None) -> None:
    (power / "state").unlink()
    if state:
        (power / "state").write_text(state)
    assert hibernation.refuse(power, tmp_path / "no debugfs") is None


def test_a_kernel_that_cannot_be_kept_from_it_is_told(power: Path, tmp_path: Path, modprobes: list[list[str]]) -> None:
    line = hibernation.refuse(power, tmp_path / "no debugfs")
    assert line and "/sys/power/state" in line and "secretmem.enable=1" in line and "\n" not in line
    assert modprobes == [["modprobe", "pm-notifier-error-inject"]]


# systemd


class Systemd:
    def __init__(self, state: str = "running\n") -> None:
        self.state = state
        self.told: list[list[str]] = []

    def tell(self, words: Sequence[str]) -> str:
        self.told.append(list(words))
        return self.state if words == ["is-system-running"] else ""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return tmp_path / "run"


def drop_ins(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*.conf"))


def test_systemd_has_drop_ins_for_as_long_as_the_swap_is_on(run: Path) -> None:
    systemd = Systemd()
    sleep_units.put(False, run, systemd.tell)
    sleep_units.put(False, run, systemd.tell)  # of another area: nothing new
    assert drop_ins(run) == [
        "systemd/sleep.conf.d/zz-zcache.conf",
        "systemd/system/systemd-hibernate.service.d/zz-zcache.conf",
        "systemd/system/systemd-hybrid-sleep.service.d/zz-zcache.conf",
        "systemd/system/systemd-suspend-then-hibernate.service.d/zz-zcache.conf",
        "systemd/system/systemd-suspend.service.d/zz-zcache.conf",
    ]
    assert systemd.told == [["daemon-reload"]]
    unit = (run / "systemd/system/systemd-suspend.service.d/zz-zcache.conf").read_text()
    assert "\nExecStartPre=" in unit and "\nExecStopPost=" in unit
    sleep_units.remove(run, systemd.tell)
    assert [path.name for path in (run / "systemd").iterdir()] == ["system"] and not any(run.rglob("*.d"))
    assert systemd.told[1:] == [["is-system-running"], ["daemon-reload"]]
    sleep_units.remove(run, systemd.tell)
    assert len(systemd.told) == 3


def test_who_asked_for_it_may_hibernate_without_the_swap(run: Path) -> None:
    systemd = Systemd()
    sleep_units.put(False, run, systemd.tell)
    sleep_units.put(True, run, systemd.tell)
    assert drop_ins(run)[0].startswith("systemd/system/") and len(systemd.told) == 2
    texts = {path.parent.name: path.read_text() for path in run.rglob("*.conf")}
    assert "pre\n" in texts["systemd-suspend.service.d"]
    assert "pre --hibernate\n" in texts["systemd-hibernate.service.d"]
    assert "post --hibernate\n" in texts["systemd-suspend-then-hibernate.service.d"]
    sleep_units.remove(run, systemd.tell)
    assert not drop_ins(run)


@pytest.mark.parametrize(("wishes", "expected"), [([True], True), ([True, False], False), ([], True)])
def test_all_areas_have_to_allow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wishes: list[bool], expected: bool
) -> None:
    folders = [StateFolder(tmp_path / str(number)) for number in range(len(wishes))]
    for folder, wish in zip(folders, wishes, strict=True):
        folder.create()
        folder.save(SwapState(ProcessIdentity(7, 9), may_hibernate=wish))
    monkeypatch.setattr(sysctls, "holders", lambda: [str(folder.state) for folder in folders])
    put: list[bool] = []
    monkeypatch.setattr(sleep_units, "put", put.append)
    monkeypatch.setattr(hibernation, "refuse", lambda: None)
    sleep_units.guard(pytest.fail)
    assert put == [expected]


def test_a_machine_that_shuts_down_is_not_made_to_read_its_units_again(run: Path) -> None:
    systemd = Systemd("stopping\n")
    sleep_units.put(False, run, systemd.tell)
    sleep_units.remove(run, systemd.tell)
    assert systemd.told == [["daemon-reload"], ["is-system-running"]]


def test_without_systemd_nothing_is_written(tmp_path: Path) -> None:
    systemd = Systemd()
    sleep_units.put(False, tmp_path, systemd.tell)
    sleep_units.remove(tmp_path, systemd.tell)
    assert not list(tmp_path.iterdir()) and not systemd.told


def test_a_path_that_systemd_would_read_otherwise_is_quoted() -> None:
    assert sleep_units.command("pre", "/a b/100%/$x") == '"/a b/100%%/$$x" -I -m zcache.swap.sleep pre'


@pytest.mark.parametrize("holders", [["another"], []])
def test_what_guards_goes_with_the_last_area_and_is_as_the_others_want_it(
    monkeypatch: pytest.MonkeyPatch, holders: list[str]
) -> None:
    done = []
    monkeypatch.setattr(sysctls, "holders", lambda: holders)
    monkeypatch.setattr(sleep_units, "remove", lambda: done.append("remove"))
    monkeypatch.setattr(hibernation, "allow", lambda: done.append("allow"))
    monkeypatch.setattr(sleep_units, "guard", lambda _report: done.append("guard"))
    sleep_units.unguard()
    assert done == (["guard"] if holders else ["remove", "allow"])


def test_an_area_that_is_turned_on_meanwhile_keeps_what_guards_it(monkeypatch: pytest.MonkeyPatch) -> None:
    holders = iter([[], ["just now"]])
    done = []
    monkeypatch.setattr(sysctls, "holders", lambda: next(holders))
    monkeypatch.setattr(sleep_units, "remove", lambda: done.append("remove"))
    monkeypatch.setattr(sleep_units, "guard", lambda _report: done.append("guard"))
    monkeypatch.setattr(hibernation, "allow", lambda: done.append("allow"))
    sleep_units.unguard()
    assert done == ["remove", "allow", "guard"]
