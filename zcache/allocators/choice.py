"""Which allocators there are, by the names that `allocator=` takes."""

from typing import Final

from zcache.allocators.log import Log
from zcache.allocators.zbud import Zbud

DEFAULT_ALLOCATOR: Final = "log"
ALLOCATORS: Final[dict[str, type[Log] | type[Zbud]]] = {"log": Log, "zbud": Zbud}
