"""The states of a succession and the transitions between them, in three tables.

Who serves, and who is next (`State`): a server that begins, serves or is dead, beside a standby
that is not there, starts or is ready.

                  no standby  -STANDBY_STARTED->  one starts  -STANDBY_READY->  one is ready
                              <----------------- STANDBY_DIED, from both ------

    it begins     BEGINS_ALONE             BEGINS_STANDBY_STARTS              BEGINS_GUARDED
      | SERVES        |                              |                              |
      v               v                              v                              v
    it serves     SERVES_ALONE             SERVES_STANDBY_STARTS              SERVES_GUARDED
      | SERVER_DIED   |                              |                              |
      v               v                              v                              v
    it is dead    DEAD_ALONE                DEAD_STANDBY_STARTS                 TAKES_OVER
                                                                                    |
                  BEGINS_ALONE  <--- BEGUN: the standby is the server now ----------+

A server that dies before it serves goes straight from its row to the last. A new standby is the
heir that a server leaves as it begins, or is started from disk, when it serves or is dead: not
while it begins, for memory is short then. END is possible everywhere.

The code that is on disk now, when swap-upgrade asks for it, starts as a *replacement*, beside all
of that (`Phase`, REPLACEMENT). What it is next is `Upgrade`:

    NONE ---------> SWITCHED ---------> ON_TRIAL ---------> NONE, when it serves
          SWITCHED             BEGUN              SERVES

A way back, the old code's standby, is kept through SWITCHED and ON_TRIAL. If the new code dies
before it serves, FELL_BACK makes that the standby again. RESCUE is an upgrade of a server that is
dead and has left no heir: whatever was next is not of its code either, so nothing is kept.

An event that is in a table, but not in the row of a state, cannot happen in that state; one that is
not in a table changes nothing there. The state is nowhere stored: `state_of` and `upgrade_of` read
it off the processes, so that it cannot contradict them. `succession.py` acts by it;
tests/unit/keeper/test_states.py walks each transition, and finds no others.
"""

from enum import IntEnum
from typing import Final


class Phase(IntEnum):
    """Of a process that is to serve later: a standby, or a replacement."""

    NONE = 0
    STARTS = 1
    READY = 2  # it has loaded and locked what it needs, and waits


class Service(IntEnum):
    """Of the server."""

    BEGINS = 0  # it was told to serve, and does not yet
    SERVES = 1
    DEAD = 2


class State(IntEnum):
    """Of both: `3 * service + the standby's phase`, but for the last."""

    BEGINS_ALONE = 0
    BEGINS_STANDBY_STARTS = 1
    BEGINS_GUARDED = 2
    SERVES_ALONE = 3  # resting, when a standby has just died
    SERVES_STANDBY_STARTS = 4
    SERVES_GUARDED = 5  # as it should be
    DEAD_ALONE = 6  # a server has to be started from disk
    DEAD_STANDBY_STARTS = 7
    TAKES_OVER = 8  # until the next look
    ENDED = 9  # keeper and all


class Upgrade(IntEnum):
    """Whose code is next: `2 * (the standby is of new code) + (an old one is kept)`."""

    NONE = 0
    ON_TRIAL = 1  # new code is the server, and has not served yet
    RESCUE = 2  # new code is the standby, and there is nothing to go back to
    SWITCHED = 3  # new code is the standby, and the server was told to end


class Event(IntEnum):
    """What happens to them, or is done with them."""

    SERVES = 0  # the server does
    SERVER_DIED = 1
    STANDBY_STARTED = 2  # from disk, or the server has left it
    STANDBY_READY = 3
    STANDBY_DIED = 4
    BEGUN = 5  # the standby was told to serve
    GIVEN_UP = 6  # the heir of servers that have died, one after the other, before they served
    REQUESTED = 7  # swap-upgrade wants the code that is on disk now
    REPLACEMENT_READY = 8
    REFUSED = 9  # new code has ended, or there would be no way back to the old
    SWITCHED = 10  # new code is the standby, and the old one is kept; then the server is told to end
    RESCUED = 11  # new code is the standby of a server that is dead; nothing is kept
    FELL_BACK = 12  # new code has died: the old standby is the standby again
    END = 13  # SIGTERM, and there is no swap; or the server has died before swap-up was done


#: Whose server is dead; nobody serves, and memory is for the next one alone.
DEAD: Final = frozenset({State.DEAD_ALONE, State.DEAD_STANDBY_STARTS, State.TAKES_OVER})
#: In which a standby is started from disk.
WANT_STANDBY: Final = frozenset({State.SERVES_ALONE, State.DEAD_ALONE})
#: In which there is a standby that is ready.
GUARDED: Final = frozenset({State.BEGINS_GUARDED, State.SERVES_GUARDED, State.TAKES_OVER})

SUCCESSION: Final[dict[State, dict[Event, State]]] = {
    State.BEGINS_ALONE: {
        Event.SERVES: State.SERVES_ALONE,
        Event.STANDBY_STARTED: State.BEGINS_STANDBY_STARTS,
        Event.SERVER_DIED: State.DEAD_ALONE,
        Event.END: State.ENDED,
    },
    State.BEGINS_STANDBY_STARTS: {
        Event.SERVES: State.SERVES_STANDBY_STARTS,
        Event.STANDBY_READY: State.BEGINS_GUARDED,
        Event.STANDBY_DIED: State.BEGINS_ALONE,
        Event.SERVER_DIED: State.DEAD_STANDBY_STARTS,
        Event.END: State.ENDED,
    },
    State.BEGINS_GUARDED: {
        Event.SERVES: State.SERVES_GUARDED,
        Event.STANDBY_DIED: State.BEGINS_ALONE,
        Event.SERVER_DIED: State.TAKES_OVER,
        Event.END: State.ENDED,
    },
    State.SERVES_ALONE: {
        Event.STANDBY_STARTED: State.SERVES_STANDBY_STARTS,
        Event.SERVER_DIED: State.DEAD_ALONE,
        Event.SWITCHED: State.SERVES_GUARDED,  # a second time, at the look at which the first new code serves
        Event.END: State.ENDED,
    },
    State.SERVES_STANDBY_STARTS: {
        Event.STANDBY_READY: State.SERVES_GUARDED,
        Event.STANDBY_DIED: State.SERVES_ALONE,
        Event.SERVER_DIED: State.DEAD_STANDBY_STARTS,
        Event.SWITCHED: State.SERVES_GUARDED,  # as above
        Event.END: State.ENDED,
    },
    State.SERVES_GUARDED: {
        Event.STANDBY_DIED: State.SERVES_ALONE,
        Event.SERVER_DIED: State.TAKES_OVER,
        Event.SWITCHED: State.SERVES_GUARDED,  # by another standby; SERVER_DIED is next
        Event.FELL_BACK: State.SERVES_GUARDED,  # new code was switched to, and died before the server ended
        Event.END: State.ENDED,
    },
    State.DEAD_ALONE: {
        Event.STANDBY_STARTED: State.DEAD_STANDBY_STARTS,
        Event.SWITCHED: State.TAKES_OVER,
        Event.RESCUED: State.TAKES_OVER,
        Event.FELL_BACK: State.TAKES_OVER,
        Event.END: State.ENDED,
    },
    State.DEAD_STANDBY_STARTS: {
        Event.STANDBY_READY: State.TAKES_OVER,
        Event.STANDBY_DIED: State.DEAD_ALONE,
        Event.GIVEN_UP: State.DEAD_ALONE,
        Event.SWITCHED: State.TAKES_OVER,
        Event.RESCUED: State.TAKES_OVER,
        Event.FELL_BACK: State.TAKES_OVER,
        Event.END: State.ENDED,
    },
    State.TAKES_OVER: {
        Event.BEGUN: State.BEGINS_ALONE,
        Event.STANDBY_DIED: State.DEAD_ALONE,
        Event.GIVEN_UP: State.DEAD_ALONE,
        Event.SWITCHED: State.TAKES_OVER,
        Event.RESCUED: State.TAKES_OVER,
        Event.FELL_BACK: State.TAKES_OVER,
        Event.END: State.ENDED,
    },
    State.ENDED: {},
}

REPLACEMENT: Final[dict[Phase, dict[Event, Phase]]] = {
    Phase.NONE: {Event.REQUESTED: Phase.STARTS},
    Phase.STARTS: {
        Event.REQUESTED: Phase.STARTS,  # anew
        Event.REPLACEMENT_READY: Phase.READY,
        Event.REFUSED: Phase.NONE,
    },
    Phase.READY: {  # it waits until the server serves, and has an heir that is ready
        Event.REQUESTED: Phase.STARTS,
        Event.REFUSED: Phase.NONE,
        Event.SWITCHED: Phase.NONE,
        Event.RESCUED: Phase.NONE,
    },
}

UPGRADE: Final[dict[Upgrade, dict[Event, Upgrade]]] = {
    Upgrade.NONE: {
        Event.SERVES: Upgrade.NONE,
        Event.BEGUN: Upgrade.NONE,
        Event.SWITCHED: Upgrade.SWITCHED,
        Event.RESCUED: Upgrade.RESCUE,
    },
    Upgrade.SWITCHED: {
        Event.SWITCHED: Upgrade.SWITCHED,  # to code that is newer still, before the server has ended
        Event.BEGUN: Upgrade.ON_TRIAL,
        Event.FELL_BACK: Upgrade.NONE,
    },
    Upgrade.ON_TRIAL: {
        Event.SWITCHED: Upgrade.SWITCHED,  # the way back is still that to the code before both
        Event.SERVES: Upgrade.NONE,
        Event.FELL_BACK: Upgrade.NONE,
    },
    Upgrade.RESCUE: {Event.RESCUED: Upgrade.RESCUE, Event.BEGUN: Upgrade.NONE},
}


def state_of(service: Service, standby: Phase) -> State:
    return State(3 * service + standby)


def upgrade_of(is_new_code: bool, has_way_back: bool) -> Upgrade:
    """`is_new_code`: the standby is. `has_way_back`: a standby of the old code is kept."""
    return Upgrade(2 * is_new_code + has_way_back)


for _table, _states in ((SUCCESSION, State), (REPLACEMENT, Phase), (UPGRADE, Upgrade)):
    assert set(_table) == set(_states), f"{_states.__name__}: a state without a row"
for _state, _row in SUCCESSION.items():
    assert (Event.END in _row) == (_state is not State.ENDED), _state.name
    assert _row.get(Event.SERVER_DIED, State.DEAD_ALONE) in DEAD, _state.name
for _service in Service:
    assert {state_of(_service, _phase) for _phase in Phase} <= set(State) - {State.ENDED}
assert {state_of(Service.DEAD, _phase) for _phase in Phase} == DEAD
assert {state_of(_service, Phase.READY) for _service in Service} == GUARDED
assert upgrade_of(True, True) is Upgrade.SWITCHED and upgrade_of(False, True) is Upgrade.ON_TRIAL
