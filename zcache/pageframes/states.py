"""The states of a pageframe and the transitions that are allowed, in one table.

          take              full                isolate              land               drop
    FREE ------> ACTIVE <-----------> DIRTY ------------> WRITEBACK ------> CLEAN <-----------> COLD
                        loses a zpage,        <----------           fetch
                        or write failed       write failed
                        and it has room

From each state but FREE a frame becomes FREE when its last zpage dies; from WRITEBACK only once the
flight has ended. CLEAN becomes DIRTY when its slot below is given up (`zcache.reclaim.demotion`).
Ephemeral frames know FREE, ACTIVE and DIRTY alone: they are never written anywhere.
"""

from enum import IntEnum
from typing import Final


class State(IntEnum):
    """What a frame is, as stored in one byte of the frame table."""

    FREE = 0  # nowhere; the id can be handed out
    ACTIVE = 1  # in RAM only, and has room for another zpage
    DIRTY = 2  # in RAM only, takes no more zpages
    WRITEBACK = 3  # in RAM, on its way to the tier below; its bytes must not change
    CLEAN = 4  # in RAM and below: can be dropped at no cost
    COLD = 5  # below only


#: The states as plain numbers, for what is done for each page or frame: to look a member of an enum
#: up costs more there than the rest of the line.
FREE: Final = 0
ACTIVE: Final = 1
DIRTY: Final = 2
WRITEBACK: Final = 3
CLEAN: Final = 4
COLD: Final = 5

assert {state.name: state.value for state in State} == {
    "FREE": FREE,
    "ACTIVE": ACTIVE,
    "DIRTY": DIRTY,
    "WRITEBACK": WRITEBACK,
    "CLEAN": CLEAN,
    "COLD": COLD,
}

ALLOWED: Final[dict[State, frozenset[State]]] = {
    State.FREE: frozenset({State.ACTIVE}),
    State.ACTIVE: frozenset({State.DIRTY, State.WRITEBACK, State.FREE}),
    State.DIRTY: frozenset({State.ACTIVE, State.WRITEBACK, State.FREE}),
    State.WRITEBACK: frozenset({State.CLEAN, State.DIRTY, State.FREE}),
    State.CLEAN: frozenset({State.COLD, State.DIRTY, State.FREE}),
    State.COLD: frozenset({State.CLEAN, State.FREE}),
}
