"""zcache: a compressed page store, what it takes to swap to it, and `Region`: memory of one process
that is larger than the RAM that it may take."""

from typing import Any

#: Of what is installed, or lies here: pyproject.toml reads it, too.
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`Region`, once somebody asks for it: no server, and no command, loads it."""
    if name != "Region":
        raise AttributeError(f"module 'zcache' has no attribute {name!r}")
    from zcache.pager.region import Region

    return Region
