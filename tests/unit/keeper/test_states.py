"""The tables of states: everything that can happen to a succession is in them, and all that is in
them happens.

From a server that has just begun, whatever can happen next is tried, and again from wherever that
leads, until nothing new is found. Servers are fakes: nothing is started, and nothing waited for.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar, cast

import pytest

from zcache.keeper import voice
from zcache.keeper.locked_image import LockedImage
from zcache.keeper.server_process import ServerProcess
from zcache.keeper.states import REPLACEMENT, SUCCESSION, UPGRADE, Event, Phase, Service, State, Upgrade
from zcache.keeper.succession import LAST_FAILURE, Outage, Succession
from zcache.keeper.voice import Complaints

S = TypeVar("S")

TABLES: Final = {"succession": SUCCESSION, "replacement": REPLACEMENT, "upgrade": UPGRADE}


class FakeServer:
    """A process, as far as a succession asks. One that is stuck does not end when it is told to."""

    steps = None

    def __init__(self, pid: int, is_stuck: bool, is_heir: bool = False) -> None:
        self.pid = pid
        self.is_heir = is_heir
        self.is_dead = self.is_known_as_ready = False
        self._is_stuck = is_stuck
        self._heir: FakeServer | None = None

    def leave(self, heir: "FakeServer") -> None:
        self._heir = heir

    def heir(self) -> "FakeServer | None":
        heir, self._heir = self._heir, None
        return heir

    def begin(self, files: Sequence[int], leaves_heir: bool = True) -> None:
        pass

    def has_ended(self) -> bool:
        return self.is_dead

    def is_ready(self) -> bool:
        return self.is_known_as_ready

    def exit_status(self) -> int:
        return 0

    def status_in_words(self) -> str:
        return " with status 0"

    def age_seconds(self) -> float:
        return 0.0

    def end(self) -> None:
        self.is_dead = self.is_dead or not self._is_stuck

    def discard(self) -> None:
        self.is_dead = True

    def close(self) -> None:
        assert self.is_dead, "nobody would know it"


class FakeImage:
    """What servers write into an image's header."""

    def __init__(self) -> None:
        self.signs = self
        self.pid = 0
        self.serves = False
        self.upgrades = self.refusals = 0
        self.is_over = False

    def begin_upgrade(self) -> None:
        self.upgrades += 1

    def refuse_upgrade(self) -> None:
        self.refusals += 1

    def end_swap(self) -> None:
        assert not self.is_over
        self.is_over = True


def next_state(table: dict[S, dict[Event, S]], state: S, event: Event) -> S:
    """Raises `KeyError` for an event that the table has, but not in that state."""
    return table[state][event] if any(event in row for row in table.values()) else state


class Seen(NamedTuple):
    """A world as the tables see it, and who plays which part."""

    succession: State
    replacement: Phase
    upgrade: Upgrade
    cast: tuple[int, ...]

    def after(self, events: tuple[Event, ...]) -> tuple[State, Phase, Upgrade] | None:
        """By the tables; None if they have that this cannot happen."""
        state, replacement, upgrade = self[:3]
        try:
            for event in events:
                state = next_state(SUCCESSION, state, event)
                replacement = next_state(REPLACEMENT, replacement, event)
                upgrade = next_state(UPGRADE, upgrade, event)
        except KeyError:
            return None
        return state, replacement, upgrade


class World:
    """A succession of fakes, and what can happen to it."""

    def __init__(self, is_stuck: bool) -> None:
        self.is_stuck = is_stuck
        self.image = FakeImage()
        self.processes: list[FakeServer] = []
        self.heirs: list[FakeServer] = []  # that were left
        self.cannot_start = False
        self.succession = Succession(self._start, cast("LockedImage", self.image), Complaints(), Outage())

    def _start(self) -> ServerProcess:
        if self.cannot_start:
            raise BlockingIOError(11, "no process can be had")
        self.processes.append(FakeServer(1000 + len(self.processes), self.is_stuck))
        return cast("ServerProcess", self.processes[-1])

    def _played_by(self, name: str) -> FakeServer:
        return cast("FakeServer", getattr(self.succession, name))

    def seen(self) -> Seen:
        each = self.succession
        cast_ = (each.server, each.standby, each.replacement, each.old_standby)
        pids = tuple(process.pid if process else 0 for process in cast_)
        return Seen(each.state(), each.replacement_phase(), each.upgrade(), pids)

    def key(self) -> tuple[object, ...]:
        """What its future depends on."""
        each, failures = self.succession, self.succession.failures
        is_heir = each.standby is not None and each.standby.is_heir
        counted = (failures.count % LAST_FAILURE, failures.is_counted)
        return (*self.seen()[:3], is_heir, each.serves(), *counted)

    def check(self) -> None:
        """Whoever lives is known, so that it can be ended."""
        lives = {process.pid for process in self.processes if not process.is_dead}
        if self.seen().succession is not State.ENDED:
            assert lives <= set(self.seen().cast), "a process that nobody knows any more"
        elif not self.is_stuck:
            assert not lives
        played = [pid for pid in self.seen().cast if pid]
        assert len(played) == len(set(played)), "one process in two parts"

    # What can happen; each is nothing where it cannot.

    def serve(self) -> None:
        if self.succession.service() is Service.BEGINS:
            self.image.pid, self.image.serves = self.succession.server.pid, True
        self.succession.note_service()

    def serve_and_look_at_the_replacement(self) -> None:
        """In one look of the keeper's, in its order."""
        if self.succession.service() is Service.BEGINS:
            self.image.pid, self.image.serves = self.succession.server.pid, True
            self.succession.keep_replacement()
            self.succession.note_service()

    def die(self) -> None:
        self._played_by("server").is_dead = True

    def note_death(self) -> None:
        if self.succession.server.has_ended():
            self.succession.note_death()

    def succeed(self) -> None:
        is_noted = self.succession.serves() or self.succession.failures.is_counted
        if self.succession.server.has_ended() and is_noted:  # which the keeper does first
            self.succession.succeed([])

    def leave_an_heir(self) -> None:
        if self.succession.standby is None and self.succession.service() is Service.BEGINS:
            heir = FakeServer(1000 + len(self.processes), self.is_stuck, is_heir=True)
            self.processes.append(heir)
            self._played_by("server").leave(heir)
            self.succession.keep_standby()

    def rest(self) -> None:
        self.succession.rest.end_seconds = 0.0
        self.succession.keep_standby()

    def standby_is_ready(self) -> None:
        if self.succession.standby:
            self._played_by("standby").is_known_as_ready = True

    def standby_dies(self) -> None:
        if self.succession.standby:
            self._played_by("standby").is_dead = True
            self.succession.keep_standby()

    def request(self) -> None:
        self.succession.start_replacement()

    def request_what_cannot_start(self) -> None:
        self.cannot_start = True
        with pytest.raises(BlockingIOError):
            self.succession.start_replacement()
        self.cannot_start = False

    def replacement_is_ready(self) -> None:
        if self.succession.replacement:
            self._played_by("replacement").is_known_as_ready = True

    def replacement_dies(self) -> None:
        if self.succession.replacement:
            self._played_by("replacement").is_dead = True
            self.succession.keep_replacement()

    def look_at_the_replacement(self) -> None:
        self.succession.keep_replacement()

    def end(self) -> None:
        self.succession.end()


#: What can happen, and what it may be by the tables: events, one after the other.
HAPPENINGS: Final[dict[Callable[[World], None], tuple[tuple[Event, ...], ...]]] = {
    World.serve: ((Event.SERVES,),),
    World.serve_and_look_at_the_replacement: (
        (Event.SERVES,),
        (Event.SERVES, Event.REFUSED),
        (Event.SERVES, Event.SWITCHED),
        (Event.SERVES, Event.SWITCHED, Event.SERVER_DIED),
    ),
    World.die: ((Event.SERVER_DIED,),),
    World.note_death: ((Event.GIVEN_UP,), (Event.FELL_BACK,)),
    World.succeed: ((Event.BEGUN,),),
    World.leave_an_heir: ((Event.STANDBY_STARTED,),),
    World.rest: ((Event.STANDBY_STARTED,),),
    World.standby_is_ready: ((Event.STANDBY_READY,),),
    World.standby_dies: ((Event.STANDBY_DIED,), (Event.FELL_BACK,)),
    World.request: ((Event.REQUESTED,),),
    World.request_what_cannot_start: ((Event.REFUSED,),),
    World.replacement_is_ready: ((Event.REPLACEMENT_READY,),),
    World.replacement_dies: ((Event.REFUSED,),),
    World.look_at_the_replacement: (
        (Event.SWITCHED, Event.SERVER_DIED),
        (Event.SWITCHED,),
        (Event.RESCUED,),
        (Event.REFUSED,),
    ),
    World.end: ((Event.END,),),
}


class Walked(NamedTuple):
    """All that can happen: (table, state, event) of each transition that was seen, and the paths to
    those that are in no table."""

    transitions: set[tuple[str, object, Event]]
    unknown: list[str]
    states: set[State]


def walk(is_stuck: bool) -> Walked:
    walked = Walked(set(), [], set())
    paths: list[tuple[Callable[[World], None], ...]] = [()]
    known = {World(is_stuck).key()}
    while paths:
        path = paths.pop(0)
        for happening, possible in HAPPENINGS.items():
            world = World(is_stuck)
            for earlier in path:
                earlier(world)
            before = world.seen()
            happening(world)
            after = world.seen()
            world.check()
            walked.states.add(after.succession)
            if after != before:
                events = next((each for each in possible if before.after(each) == after[:3]), None)
                if events is None:
                    steps = " > ".join(step.__name__ for step in (*path, happening))
                    walked.unknown.append(f"{steps}: {before} to {after}")
                    continue
                note(walked, before, events)
            if world.key() not in known and after.succession is not State.ENDED:
                known.add(world.key())
                paths.append((*path, happening))
    return walked


def note(walked: Walked, before: Seen, events: tuple[Event, ...]) -> None:
    for i, event in enumerate(events):
        for name, state in zip(TABLES, before.after(events[:i]) or (), strict=True):
            walked.transitions.add((name, state, event))


@pytest.fixture(scope="module")
def walks() -> Iterator[list[Walked]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(voice, "say", lambda _line: None)
        yield [walk(is_stuck) for is_stuck in (False, True)]


def test_nothing_happens_that_is_in_no_table(walks: list[Walked]) -> None:
    assert list(itertools.chain(*(each.unknown for each in walks))) == []


def test_every_state_is_reached(walks: list[Walked]) -> None:
    assert set().union(*(each.states for each in walks)) == set(State)


@pytest.mark.parametrize(
    ("table", "state", "event"),
    [
        pytest.param(name, state, event, id=f"{name}-{state.name}-{event.name}")
        for name, table in TABLES.items()
        for state, row in cast("dict[State, dict[Event, State]]", table).items()
        for event in row
    ],
)
def test_each_transition(walks: list[Walked], table: str, state: State, event: Event) -> None:
    """It happens, and leads where the table says."""
    assert any((table, state, event) in each.transitions for each in walks)
