"""`zcache sleep`, on a tree of control groups, processes and devices made of plain files."""

import os
from pathlib import Path

import pytest

from tests.support.sleeping_machine import GIB, OWN, OWN_PID, FakeMachine
from zcache.errors import SwapError
from zcache.keeper import frozen
from zcache.linux import cgroup
from zcache.swap import control_groups, freezing, sleep, sysctls
from zcache.swap.sleep import Machine, Sleep


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "getpid", lambda: OWN_PID)
    monkeypatch.setattr(freezing, "apart", lambda work: work())
    monkeypatch.setattr(cgroup, "join", lambda _pid: None)
    monkeypatch.setattr(sleep, "QUIET_SECONDS", 0.05)
    return FakeMachine(tmp_path)


def brought_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The processes whose pages are brought in, and how many bytes of each at most."""
    brought: list[tuple[int, int]] = []

    def bring_in(pid: int, most_bytes: int, _proc: Path) -> int:
        brought.append((pid, most_bytes))
        return most_bytes

    monkeypatch.setattr(sleep, "bring_in", bring_in)
    return brought


def test_it_freezes_who_has_something_in_swap_and_nobody_that_a_suspend_needs(machine: FakeMachine) -> None:
    for pid, name, group in (
        (10, "dbus-daemon", "system.slice/dbus.service"),
        (11, "systemd-logind", "system.slice/systemd-logind.service"),
        (12, "systemd-journal", "system.slice/systemd-journald.service"),
        (13, "cron", "system.slice/cron.service"),
        (14, "dbus-daemon", "user.slice/user-1000.slice/user@1000.service/session.slice/dbus.service"),
        (15, "firefox", "user.slice/user-1000.slice/user@1000.service/app.slice/firefox.scope"),
        (16, "nginx", "web/inner"),
    ):
        machine.program(pid, name, group)
    machine.program(17, "idle", "system.slice/idle.service", swap_bytes=0)
    for name in ("init.scope", "run-zcache", OWN, "system.slice", "user.slice", "web"):
        machine.group(name, 4096)
    machine.sleep().pre()
    expected = [
        "system.slice/cron.service",
        "user.slice/user-1000.slice/user@1000.service/app.slice/firefox.scope",
        "user.slice/user-1000.slice/user@1000.service/session.slice/dbus.service",
        "web/inner",
    ]
    assert machine.asked_to_freeze() == machine.recorded() == expected
    machine.sleep().post()
    assert machine.asked_to_freeze() == [] and not machine.areas[0].record.exists()


def test_shared_memory_of_another_group_counts_and_so_does_a_group_that_nobody_counts(machine: FakeMachine) -> None:
    """The kernel counts shared memory for who touched it first; and without the memory controller
    it counts nothing."""
    machine.process(20, "worker", "a", swap_kib=4)
    machine.group("b", swap_bytes=None)
    machine.process(21, "worker", "b", swap_kib=4)
    machine.process(22, "worker", "c", swap_kib=0)
    machine.sleep().pre()
    assert machine.asked_to_freeze() == ["a", "b"]


def test_all_threads_of_a_process_are_frozen_in_whatever_groups_they_are(machine: FakeMachine) -> None:
    """As of a virtual machine of libvirt's, whose processors are threads in groups of their own."""
    scope = machine.group("machine.slice/qemu.scope", 4096)
    for name in ("libvirt", "libvirt/emulator", "libvirt/vcpu0"):
        machine.group(f"machine.slice/qemu.scope/{name}")
    (scope / "libvirt/cgroup.type").write_text("domain threaded\n")
    (scope / "libvirt/emulator/cgroup.type").write_text("threaded\n")
    machine.process(20, "qemu", "machine.slice/qemu.scope/libvirt/emulator", swap_kib=4)
    machine.sleep().pre()
    assert machine.asked_to_freeze() == ["machine.slice/qemu.scope/libvirt"]


def test_the_record_is_there_before_anything_is_frozen(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.program(20, "load", "load")
    seen = []
    monkeypatch.setattr(control_groups, "freeze", lambda group: seen.append((group.name, machine.recorded())))
    machine.sleep().pre()
    assert seen == [("load", ["load"])]


def test_a_group_that_does_not_freeze_costs_the_suspend_and_all_is_thawed(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "FREEZE_SECONDS", 0.05)
    machine.program(20, "load", "load")
    machine.program(21, "sshfs", "system.slice/fuse.service")
    machine.group("system.slice/fuse.service", 4096, is_stuck=True)
    with pytest.raises(SwapError, match=r"^/system.slice/fuse.service does not freeze .*sshfs \(21\)"):
        machine.sleep().pre()
    assert machine.asked_to_freeze() == [] and not machine.areas[0].record.exists()


def test_a_group_that_takes_time_to_freeze_is_waited_for(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    group = machine.program(20, "load", "load")
    machine.group("load", 4096, is_stuck=True)
    looks = []

    def look(asked: Path) -> bool:
        looks.append(asked)
        if len(looks) == 3:
            machine.group("load", 4096)
        return "frozen 1" in (asked / "cgroup.events").read_text()

    monkeypatch.setattr(control_groups, "is_frozen", look)
    machine.sleep().pre()
    assert looks[:3] == [group] * 3 and machine.asked_to_freeze() == ["load"]


def test_a_pre_that_fails_thaws_what_it_froze_whatever_became_of_the_record(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.program(20, "load", "load")

    def fail(_self: Sleep) -> None:
        machine.areas[0].record.unlink()  # the keeper, which took it for an older one
        raise SwapError("for some reason")

    monkeypatch.setattr(Sleep, "_wait_until_quiet", fail)
    with pytest.raises(SwapError, match="for some reason"):
        machine.sleep().pre()
    assert machine.asked_to_freeze() == []


def test_post_thaws_where_no_state_can_be_read(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    group = machine.program(20, "load", "load")
    state = machine.areas[0].record.with_name("swap.json")
    state.write_text("not JSON")
    monkeypatch.setattr(control_groups, "version_2", lambda: machine.root)
    monkeypatch.setattr(sysctls, "holders", lambda: [str(state)])
    frozen.write(machine.areas[0].record, [group])
    control_groups.freeze(group)
    sleep.run("post", print)
    assert machine.asked_to_freeze() == [] and not machine.areas[0].record.exists()


@pytest.mark.parametrize("is_request", [True, False])
def test_a_swap_that_does_not_come_to_rest_costs_the_suspend(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, is_request: bool
) -> None:
    monkeypatch.setattr(sleep, "UNTIL_QUIET_SECONDS", 0.05)
    machine.program(20, "load", "load")
    if is_request:
        (machine.sysfs / "nbd0/inflight").write_text("       1        0\n")
    else:
        pages = iter(range(1000))
        monkeypatch.setattr(Machine, "pages_moved", lambda _self: next(pages))
    with pytest.raises(SwapError, match="under way" if is_request else "the kernel swaps"):
        machine.sleep().pre()
    assert machine.asked_to_freeze() == []


def test_what_somebody_else_has_frozen_stays_frozen(machine: FakeMachine) -> None:
    machine.program(20, "load", "load")
    paused = machine.program(21, "paused", "machine.slice/container")
    (paused / "cgroup.freeze").write_text("1\n")
    machine.sleep().pre()
    assert machine.recorded() == ["load"]
    machine.sleep().post()
    assert machine.asked_to_freeze() == ["machine.slice/container"]


def test_each_may_be_run_twice(machine: FakeMachine) -> None:
    machine.program(20, "load", "load")
    machine.sleep().pre()
    machine.program(21, "late", "late")
    machine.sleep().pre()
    assert machine.asked_to_freeze() == machine.recorded() == ["late", "load"]
    machine.sleep().post()
    machine.sleep().post()
    assert machine.asked_to_freeze() == []


def test_who_comes_while_others_are_being_frozen_is_frozen_too(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.program(20, "load", "load")
    original = control_groups.freeze

    def freeze(group: Path) -> None:
        original(group)
        if group.name == "load":
            machine.program(21, "late", "late")

    monkeypatch.setattr(control_groups, "freeze", freeze)
    machine.sleep().pre()
    assert machine.asked_to_freeze() == machine.recorded() == ["late", "load"]


def test_by_hand_who_lies_beside_the_shell_is_parked(machine: FakeMachine) -> None:
    """Without systemd all are in the root group; by hand with it, in the session of whoever runs
    it."""
    session = "user.slice/user-0.slice/session-1.scope"
    machine.process(30, "sshd", session, swap_kib=4)
    machine.process(31, "bash", session, swap_kib=4, parent=30)
    machine.process(32, "load", session, swap_kib=4, parent=31)
    machine.process(33, "small", session, swap_kib=0, parent=31)
    machine.process(34, "load", "", swap_kib=4)
    machine.process(35, "dbus-daemon", "", swap_kib=4)
    (machine.proc / str(os.getpid()) / "stat").write_text(f"{os.getpid()} (zcache) S 31 1 1 0 -1 0 0 0\n")
    (machine.proc / str(os.getpid()) / "cgroup").write_text(f"0::/{session}\n")
    for parent in (session, "."):
        machine.group(f"{parent}/{control_groups.PARKED}")
    machine.sleep().pre()
    parked = [f"{session}/{control_groups.PARKED}", control_groups.PARKED]
    assert machine.asked_to_freeze() == machine.recorded() == parked
    assert [(machine.root / group / "cgroup.procs").read_text() for group in parked] == ["32", "34"]
    machine.sleep().post()
    assert machine.asked_to_freeze() == []
    assert [(machine.root / group / "../cgroup.procs").resolve().read_text() for group in parked] == ["32", "34"]


def test_an_ancestor_in_another_group_keeps_that_awake(machine: FakeMachine) -> None:
    """Or nobody would be left to suspend the machine: `systemd-run --scope zcache sleep pre`, from
    a shell."""
    machine.process(31, "bash", "session-1.scope", swap_kib=4)
    machine.group("session-1.scope", 4096)
    (machine.proc / str(os.getpid()) / "stat").write_text(f"{os.getpid()} (zcache) S 31 1 1 0 -1 0 0 0\n")
    machine.sleep().pre()
    assert machine.asked_to_freeze() == []


def test_those_who_go_on_have_their_pages_brought_in(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there is free memory for, the smallest first."""
    brought = brought_in(monkeypatch)
    machine.program(20, "load", "load")
    for pid, kib in ((1, 40), (10, 4)):
        if pid != 1:
            machine.process(pid, "dbus-daemon", "system.slice/dbus.service")
        (machine.proc / str(pid) / "smaps_rollup").write_text(f"Swap: {kib} kB\n")
    machine.sleep().pre()
    assert brought == [(10, sleep.BRING_IN_MOST_BYTES), (1, sleep.BRING_IN_MOST_BYTES)]
    machine.memory_free(0)
    monkeypatch.setattr(sleep, "ROOM_SECONDS", 0.0)
    machine.sleep().pre()
    assert brought[2:] == [(10, 0), (1, 0)]


def test_the_frozen_make_room_the_largest_first(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = machine.program(20, "large", "large"), machine.program(21, "small", "small")
    (large / "memory.current").write_text(str(200 << 20))
    (small / "memory.current").write_text(str(100 << 20))
    free = iter([0, 0, GIB])
    monkeypatch.setattr(Machine, "free_bytes", lambda _self: next(free, GIB))
    machine.sleep().pre()
    assert (large / "memory.reclaim").read_text() and not (small / "memory.reclaim").read_text()


def test_without_cgroup_v2_nothing_is_frozen_and_pages_are_brought_in(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = brought_in(monkeypatch)
    machine.process(20, "load", "load", swap_kib=4)
    Sleep(machine.areas, Machine(None, machine.proc, machine.sysfs)).pre()
    assert brought == [(20, sleep.BRING_IN_MOST_BYTES)] and machine.asked_to_freeze() == []


def test_where_version_2_is(tmp_path: Path) -> None:
    assert control_groups.version_2(tmp_path) is None
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified/cgroup.controllers").write_text("")  # systemd's hybrid mode: no controllers, but freezing
    assert control_groups.version_2(tmp_path) == tmp_path / "unified"
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    assert control_groups.version_2(tmp_path) == tmp_path


def test_areas_are_found_by_those_who_hold_the_settings(tmp_path: Path) -> None:
    swaps = tmp_path / "swaps"
    swaps.write_text("Filename Type Size Used Priority\n/dev/nbd0 partition 1024 0 100\n")
    holders = []
    for name, device in (("on", "/dev/nbd0"), ("off", "/dev/nbd1")):
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        keeper = '{"pid": 7, "start_time_ticks": 9}'
        (folder / "swap.json").write_text(f'{{"keeper": {keeper}, "device": "{device}", "attached_by_pid": 8}}')
        holders.append(str(folder / "swap.json"))
    areas = sleep.find_areas([*holders, str(tmp_path / "gone/swap.json")], swaps)
    assert [(area.record, area.keeper_pid, area.device, area.is_on) for area in areas] == [
        (tmp_path / "on/frozen", 7, "/dev/nbd0", True),
        (tmp_path / "off/frozen", 7, "/dev/nbd1", False),
    ]
