"""`swap-up --network-in-ram`: who keeps the network up is never swapped out, while a swap is on."""

from pathlib import Path

import pytest

from zcache.linux.cgroup import LIMIT
from zcache.swap.control_groups import ControlGroups
from zcache.swap.network_programs import NAME, find, hold, release

RESOLVED = "system.slice/systemd-resolved.service"


class Machine:
    """A tree of groups with processes in them, and a /run with systemd or without."""

    def __init__(self, folder: Path) -> None:
        self.root, self.proc, self.run = folder / "cgroup", folder / "proc", folder / "run"
        for path in (self.root, self.proc, self.run / "systemd/system"):
            path.mkdir(parents=True)
        self.record = folder / "record"
        self.told: list[list[str]] = []
        self._folder = folder

    def new_process(self, pid: int, name: str, group: str, limit: str | None = "max") -> Path:
        path = self.root / group
        path.mkdir(parents=True, exist_ok=True)
        if limit is not None:
            (path / LIMIT).write_text(f"{limit}\n")
        (self.proc / str(pid)).mkdir()
        (self.proc / f"{pid}/stat").write_text(f"{pid} ({name}) S 1 {pid} {pid} 0 -1 0 0 0")
        (self.proc / f"{pid}/cgroup").write_text(f"0::/{group}\n")
        return path

    def new_holder(self, name: str) -> Path:
        holder = self._folder / name
        holder.touch()
        return holder

    def find(self) -> dict[Path, list[str]]:
        return find(ControlGroups(self.root, self.proc), self.root)

    def hold(self, holder: Path) -> list[str]:
        return hold(holder, self.find(), self.record, self.run, self.told.append)

    def release(self, holder: Path) -> list[str]:
        return release(holder, self.record, self.run, self.told.append)

    def drop_ins(self) -> list[str]:
        return sorted(path.parent.name for path in self.run.glob(f"systemd/system/*/{NAME}"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def limit_of(group: Path) -> str:
    return (group / LIMIT).read_text().strip()


def test_they_are_found_by_name_in_their_services_and_nowhere_else(machine: Machine) -> None:
    networkd = machine.new_process(10, "systemd-network", "system.slice/systemd-networkd.service")
    ifup = machine.new_process(11, "dhclient", "system.slice/system-ifup.slice/ifup@eth0.service")
    machine.new_process(12, "sshd", "user.slice/user-0.slice/session-1.scope")
    machine.new_process(13, "sshd", ".")  # without systemd: beside all others
    machine.new_process(14, "postgres", "system.slice/postgresql.service")
    assert machine.find() == {networkd: ["systemd-network"], ifup: ["dhclient"]}


def test_held_and_put_back(machine: Machine) -> None:
    resolved = machine.new_process(10, "systemd-resolve", RESOLVED)
    redis = machine.new_process(11, "redis-server", "docker/engine.scope", "1048576")
    holder = machine.new_holder("a")
    assert machine.hold(holder) == []
    assert limit_of(resolved) == limit_of(redis) == "0"
    assert machine.record.stat().st_mode & 0o777 == 0o600
    assert machine.drop_ins() == ["systemd-resolved.service.d"] and machine.told == [["daemon-reload"]]
    assert machine.release(holder) == []
    assert (limit_of(resolved), limit_of(redis)) == ("max", "1048576")
    assert machine.drop_ins() == [] and not machine.record.exists() and len(machine.told) == 2
    assert not list((machine.run / "systemd/system").iterdir())
    assert machine.release(holder) == []


def test_the_last_of_two_swaps_puts_it_back(machine: Machine) -> None:
    resolved = machine.new_process(10, "systemd-resolve", RESOLVED)
    first, second = machine.new_holder("a"), machine.new_holder("b")
    for holder in (first, second):
        assert machine.hold(holder) == []
    assert machine.release(first) == [] and limit_of(resolved) == "0" and machine.drop_ins()
    assert machine.release(second) == [] and limit_of(resolved) == "max"


def test_a_holder_that_is_gone_does_not_count(machine: Machine) -> None:
    resolved = machine.new_process(10, "systemd-resolve", RESOLVED)
    first, second = machine.new_holder("a"), machine.new_holder("b")
    machine.hold(first)
    machine.hold(second)
    first.unlink()
    assert machine.release(second) == [] and limit_of(resolved) == "max"


def test_what_a_killed_swap_up_has_left_is_not_taken_for_what_was_there(machine: Machine) -> None:
    resolved = machine.new_process(10, "systemd-resolve", RESOLVED)
    killed, next_one = machine.new_holder("a"), machine.new_holder("b")
    machine.hold(killed)
    killed.unlink()
    machine.hold(next_one)
    assert machine.release(next_one) == [] and limit_of(resolved) == "max"


def test_what_somebody_else_has_set_meanwhile_is_left(machine: Machine) -> None:
    resolved = machine.new_process(10, "systemd-resolve", RESOLVED)
    holder = machine.new_holder("a")
    machine.hold(holder)
    (resolved / LIMIT).write_text("4096")
    assert machine.release(holder) == [] and limit_of(resolved) == "4096"


def test_a_group_that_has_ended_is_passed_over(machine: Machine) -> None:
    resolved = machine.new_process(10, "systemd-resolve", RESOLVED)
    holder = machine.new_holder("a")
    machine.hold(holder)
    (resolved / LIMIT).unlink()
    resolved.rmdir()
    assert machine.release(holder) == [] and not machine.record.exists()


def test_a_group_without_the_memory_controller_is_named(machine: Machine) -> None:
    machine.new_process(10, "wpa_supplicant", "wifi", limit=None)
    [failure] = machine.hold(machine.new_holder("a"))
    assert failure.startswith("wpa_supplicant may be swapped out: ") and "No such file" in failure


@pytest.mark.parametrize("text", ['{"before": {"../etc": "0"}}', '{"before": {"/a": 1}}', "[]", "{"])
def test_a_damaged_record_is_named_and_not_acted_on(machine: Machine, text: str) -> None:
    machine.record.write_text(text + "\n")
    [failure] = machine.release(machine.new_holder("a"))
    assert "is damaged" in failure and machine.record.exists()
