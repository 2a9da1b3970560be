"""The budget follows what it is told of the machine, and does not swing. (What a machine really
does: scripts/bench breathing.)"""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import new_object, put, small_store
from zcache.budget.breathing import BREATH_SECONDS, HOLD_SECONDS, Breathing
from zcache.budget.budget import SWEEPS, Budget
from zcache.budget.pressure import PressureGauge
from zcache.control.check import check
from zcache.control.settings import Settings
from zcache.errors import BadInput
from zcache.linux import meminfo
from zcache.linux.group_limits import GroupLimits, Room
from zcache.pages.tmem import Kind

MIB = 1 << 20
FRAME = 4096
#: What a control group must keep.
RESERVE_FRAMES = 100


class FakeGroups(GroupLimits):
    """What is left of a group's limit, which the budget takes from."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), Path("/nowhere"))
        self.limit_bytes: int | None = None
        self.used_bytes = 0
        self.budget_bytes: Callable[[], int] = lambda: 0

    def rooms(self) -> tuple[Room, ...]:
        if self.limit_bytes is None:
            return ()
        left = self.limit_bytes - self.used_bytes - self.budget_bytes()
        return (Room(self.limit_bytes, max(left, 0), "/g/memory.max"),)


class Machine:
    """A store on a machine whose memory is what the test says."""

    def __init__(self, folder: Path, rng: random.Random, least: int = 64, most: int = 1024, below: int = 4096) -> None:
        self.rng = rng
        self.clock = FakeClock()
        self.psi, self.meminfo, self._vmstat = (folder / name for name in ("psi", "meminfo", "vmstat"))
        self.stalled_seconds = 0.0
        self.available_bytes = 500 * MIB
        self.swapped = 0
        self.write()
        self.store = small_store(most, below, clock=self.clock)
        self.budget = Budget(self.store.frames, self.store.reclaimer, self.store.lock, self.store.statistics, least)
        self.budget.begin(least)
        self.groups = FakeGroups()
        self.groups.budget_bytes = lambda: self.store.frames.budget_frames * self.store.frames.frame_bytes
        gauge = PressureGauge(self.clock, self.psi, self.meminfo, self.groups)
        self.said: list[str] = []
        self.breathing = Breathing(
            self.store,
            self.budget,
            gauge,
            self.clock,
            self._vmstat,
            reserve_bytes=RESERVE_FRAMES * self.store.frames.frame_bytes,
            report=self.said.append,
        )
        self.thing = new_object(self.store, 4096)
        self.clean = new_object(self.store, 4096, Kind.EPHEMERAL)
        self.next = 0

    def write(self) -> None:
        some = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={int(self.stalled_seconds * 1e6)}\n"
        self.psi.write_text(some + some.replace("some", "full"))
        self.meminfo.write_text(f"MemTotal: {1 << 20} kB\nMemAvailable: {self.available_bytes >> 10} kB\n")
        self._vmstat.write_text(f"pswpin 0\npswpout {self.swapped}\n")

    def breathe(self, puts: int = 0, stalled: float = 0.0, is_swap: bool = True) -> int:
        """Half a second in which so many pages were swapped out, of which this machine had to wait
        for a share; the budget then, in frames."""
        for _ in range(puts):
            put(self.store, self.thing, self.next % 4096, raw_page(self.rng))
            self.next += 1
        self.swapped += puts * is_swap
        self.clock.seconds += BREATH_SECONDS
        self.stalled_seconds += stalled * BREATH_SECONDS
        self.write()
        self.breathing.breathe()
        while self.store.reclaimer.wants_to_clean() and self.store.reclaimer.clean_some():
            pass
        check(self.store)
        return self.store.frames.budget_frames

    def reasons(self) -> list[str]:
        return [decision.why for decision in self.breathing.decisions]


@pytest.fixture
def machine(tmp_path: Path, rng: random.Random) -> Machine:
    return Machine(tmp_path, rng)


def turns(sizes: list[int]) -> int:
    """How often the budget turned round."""
    moves = [after - before for before, after in itertools.pairwise(sizes) if after != before]
    return sum((before < 0) is not (after < 0) for before, after in itertools.pairwise(moves))


def test_a_step_of_pressure_up_and_down(machine: Machine) -> None:
    sizes = [machine.breathe() for _ in range(10)]
    assert set(sizes) == {64}
    up = [machine.breathe(puts=100, stalled=0.3) for _ in range(20)]
    assert up[-1] == 1024 and up[10] > 512 and turns(up) == 0
    machine.store.flush(machine.thing, 0, 4096)
    down = [machine.breathe() for _ in range(40)]
    assert down[-1] <= 70 and turns(down) == 0
    held = sum(size == 1024 for size in down)
    assert HOLD_SECONDS / BREATH_SECONDS - 1 <= held <= HOLD_SECONDS / BREATH_SECONDS + 1
    assert turns(sizes + up + down) == 1


def test_a_steady_load_is_left_alone(machine: Machine) -> None:
    """The same pages again and again: it grows to what they need, and stays there."""
    sizes = []
    for _ in range(80):
        machine.next = 0
        sizes.append(machine.breathe(puts=200))
    assert turns(sizes) == 0 and len(set(sizes[-40:])) == 1 and 200 <= sizes[-1] < 500


def test_it_does_not_grow_without_memory(machine: Machine) -> None:
    machine.available_bytes = 4 * MIB  # of a GiB
    assert {machine.breathe(puts=100) for _ in range(10)} == {64}
    machine.available_bytes = 20 * MIB  # little: in small steps, for the kernel makes it by swapping out
    assert machine.breathe(puts=100) == 72
    machine.available_bytes = 500 * MIB
    assert machine.breathe(puts=100) == 108


def test_a_machine_that_is_short_for_other_reasons_gets_memory_back(machine: Machine) -> None:
    for _ in range(20):
        machine.breathe(puts=100, is_swap=False)  # from elsewhere: a guest's
    assert machine.store.frames.budget_frames == 1024
    sizes = [machine.breathe(puts=1, stalled=0.5, is_swap=False) for _ in range(40)]
    assert sizes[-1] < 100 and turns(sizes) == 0
    assert machine.store.frames.cold > 800  # which are below now, and nothing is lost
    assert "short of memory (tasks stand still for 50% of the time)" in machine.reasons()[-1]


def test_a_machine_that_swaps_to_us_is_not_helped_by_less(machine: Machine) -> None:
    for _ in range(20):
        machine.breathe(puts=100)
    sizes = {machine.breathe(puts=1, stalled=0.9) for _ in range(20)}
    assert sizes == {1024}


def test_without_psi_what_can_be_had_decides(tmp_path: Path, rng: random.Random) -> None:
    machine = Machine(tmp_path, rng)
    machine.psi.unlink()
    machine.write = lambda: Machine.write(machine) or machine.psi.unlink()  # type: ignore[method-assign, func-returns-value]
    for _ in range(20):
        machine.breathe(puts=100, is_swap=False)
    machine.available_bytes = 10 * MIB
    for _ in range(40):
        machine.breathe(puts=1, is_swap=False)
    assert machine.store.frames.budget_frames < 100
    assert "10M can be had" in machine.reasons()[-1]
    assert machine.breathing.status()["stalled_share"] is None


def test_clean_data_gets_what_is_plenty(machine: Machine) -> None:
    def read(count: int) -> None:
        for _ in range(count):
            page = page_with_zpage_of(machine.rng, 2400)
            put(machine.store, machine.clean, machine.rng.randrange(4096), page)

    for _ in range(20):
        read(100)
        machine.breathe()
    assert machine.store.frames.budget_frames == 1024
    machine.available_bytes = 100 * MIB  # not a quarter of a GiB
    other = machine.breathing.budget
    other.shrink(1000, may_write=False)
    for _ in range(20):
        read(100)
        assert machine.breathe() == 64


def test_clean_data_at_rest_is_kept_while_nobody_wants_the_memory(machine: Machine) -> None:
    for _ in range(20):
        for _ in range(100):
            page = page_with_zpage_of(machine.rng, 2400)
            put(machine.store, machine.clean, machine.rng.randrange(4096), page)
        machine.breathe()
    held = machine.store.statistics.ephemeral_pages
    for _ in range(60):
        machine.breathe()
    assert machine.store.statistics.ephemeral_pages == held > 800
    for _ in range(60):
        machine.breathe(stalled=0.5)
    assert machine.store.frames.budget_frames == 64


def test_what_was_set_is_reached(machine: Machine) -> None:
    for _ in range(20):
        machine.breathe(puts=100)
    machine.budget.min_frames = machine.budget.max_frames = 300
    assert machine.breathe() == 300
    machine.budget.min_frames = machine.budget.max_frames = 700
    assert machine.breathe() == 700
    for _ in range(SWEEPS[0]):
        machine.breathe()
    assert machine.budget.is_settled()
    assert machine.reasons()[-2:] == ["it was set to be less", "it was set to be more"]


def test_what_cannot_be_reached_is_a_trouble(tmp_path: Path, rng: random.Random) -> None:
    machine = Machine(tmp_path, rng, least=1024, below=0)
    machine.breathe(puts=1000)
    machine.budget.min_frames = machine.budget.max_frames = 512
    assert machine.breathe() == 1000  # what was free has gone
    assert machine.breathe() == 1000 and "cannot shrink as was set" in machine.breathing.trouble
    told: list[int] = []
    machine.budget.changed = told.append
    machine.breathe()
    assert not told  # the keeper would look at the whole image again
    machine.store.flush(machine.thing, 0, 4096)
    assert machine.breathe() == 512 and not machine.breathing.trouble


def test_every_decision_can_be_seen(machine: Machine) -> None:
    for _ in range(3):
        machine.breathe(puts=100)
    status = machine.breathing.status()
    assert (status["budget_min_bytes"], status["budget_max_bytes"]) == (64 * 4096, 1024 * 4096)
    latest = status["budget_decisions"][0]
    assert latest["before_bytes"] < latest["after_bytes"] == machine.store.frames.budget_frames * 4096
    assert latest["why"] == "pages are swapped out to a full store, and memory can be had"


def test_memory_that_cannot_be_had_is_a_trouble_until_it_can(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_slots: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(machine.store.frames.memory, "get_back", refuse)
        assert machine.breathe(puts=100) == 64
    assert machine.breathing.trouble == "the budget cannot be changed: Cannot allocate memory"
    assert machine.breathe(puts=100) > 64 and not machine.breathing.trouble


def test_a_machine_that_cannot_be_looked_at_is_a_trouble(machine: Machine) -> None:
    machine.meminfo.rename(machine.meminfo.with_name("away"))
    machine.breathing.breathe()
    assert machine.breathing.trouble == "the budget does not move: ENOENT: No such file or directory"
    machine.breathe()
    assert not machine.breathing.trouble


def test_the_machine_itself_can_be_looked_at() -> None:
    clock = FakeClock()
    gauge = PressureGauge(clock)
    clock.seconds += 1
    pressure = gauge.look()
    assert 0 < pressure.available_bytes < pressure.total_bytes
    assert pressure.stalled_share is None or 0 <= pressure.stalled_share <= 1
    assert meminfo.read_counter("pswpout") >= 0


def test_a_group_s_limit_is_never_grown_into(machine: Machine) -> None:
    """Though the machine has plenty, and pages are swapped out: at the limit the kernel would
    kill."""
    machine.groups.limit_bytes, machine.groups.used_bytes = 1000 * FRAME, 300 * FRAME
    sizes = [machine.breathe(puts=100) for _ in range(30)]
    assert sizes[-1] == 600 and turns(sizes) == 0
    assert machine.said == ["/g/memory.max is 3 MiB: the budget grows to 2 MiB there, as things stand, of at most 4"]


def test_it_gives_way_to_what_else_grows_in_its_group(machine: Machine) -> None:
    """Also while the machine swaps to us; but not for a little, and not below what was promised."""
    machine.groups.limit_bytes, machine.groups.used_bytes = 1000 * FRAME, 300 * FRAME
    for _ in range(30):
        machine.breathe(puts=100)
    machine.groups.used_bytes += 25 * FRAME
    assert machine.breathe(puts=100) == 600
    machine.groups.used_bytes += 75 * FRAME
    assert machine.breathe(puts=100) == 500
    assert machine.reasons()[-1] == "/g/memory.max is 3 MiB, and nearly reached"
    machine.groups.used_bytes += 800 * FRAME
    assert [machine.breathe(puts=100) for _ in range(6)][-1] == 64
    check(machine.store)


def test_a_limit_that_changes_is_looked_at_again_and_told(machine: Machine) -> None:
    for _ in range(5):
        machine.breathe(puts=100)
    assert machine.said == []
    size = machine.store.frames.budget_frames
    machine.groups.limit_bytes = (size - 50 + RESERVE_FRAMES) * FRAME
    assert machine.breathe(puts=100) == size - 50
    machine.groups.limit_bytes += 400 * FRAME
    for _ in range(130):  # told once a minute, however often it changes
        machine.breathe(puts=100)
    assert machine.store.frames.budget_frames == size + 350
    machine.groups.limit_bytes = None
    for _ in range(130):
        machine.breathe()
    assert len(machine.said) == 3 and machine.said[-1] == "no control group limits the budget any more"


def test_a_budget_that_is_set_and_does_not_fit_the_group_is_not_taken(machine: Machine) -> None:
    machine.groups.limit_bytes = (64 + RESERVE_FRAMES + 36) * FRAME
    machine.budget.min_frames = 200
    assert [machine.breathe() for _ in range(5)] == [100] * 5
    assert (
        machine.breathing.trouble == "the budget cannot grow as was set: /g/memory.max is 0 MiB, and leaves too little"
    )
    settings = Settings(machine.store, machine.budget, None, machine.groups.rooms)
    with pytest.raises(BadInput, match=r"/g/memory.max is 0 MiB, and leaves 0; give less, or raise it"):
        settings.set("budget=900K")
    machine.groups.limit_bytes += 200 * FRAME
    settings.set("budget=900K")
    assert machine.budget.min_frames == 225


def test_clean_data_is_not_kept_where_a_group_has_no_plenty(machine: Machine) -> None:
    assert machine.breathing.pressure.beyond(0.25) == 500 * MIB - 256 * MIB
    machine.groups.limit_bytes = 400 * FRAME
    assert machine.breathing.gauge.look().beyond(0.25) == (400 - 64 - 100) * FRAME
