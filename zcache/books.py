"""What all parts of a store share: its lock, what it counts, what is damaged, and the time.

A part is given these together, and keeps what it needs of them.
"""

import threading
from typing import NamedTuple

from zcache.clock import Clock
from zcache.statistics import Statistics
from zcache.tiers.damage import Damage


class Books(NamedTuple):
    """Of one store, from its beginning to its end. `lock` protects what is counted, and the
    damage."""

    lock: threading.Lock
    statistics: Statistics
    damage: Damage
    clock: Clock
