"""What all parts of a store share: its lock, what it counts, and how its tier is.

A part is given these together, and keeps what it needs of them.
"""

import threading
from typing import NamedTuple

from zcache.statistics import Statistics
from zcache.tiers.health import Health


class Books(NamedTuple):
    """Of one store, from its beginning to its end. `lock` protects the other two, as it says
    there."""

    lock: threading.Lock
    statistics: Statistics
    health: Health
