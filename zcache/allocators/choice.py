"""Which allocators there are, by the names that `allocator=` takes."""

from typing import Final

from zcache.allocators.log import Log
from zcache.allocators.zbud import Zbud

#: log is the denser of the two (`scripts/bench store`), zbud the one that promises every page of
#: its frames.
DEFAULT_ALLOCATOR: Final = "log"
FALLBACK_ALLOCATOR: Final = "zbud"
ALLOCATORS: Final[dict[str, type[Log] | type[Zbud]]] = {"log": Log, "zbud": Zbud}
