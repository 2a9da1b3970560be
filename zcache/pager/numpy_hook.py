"""`with region.numpy():` NumPy's own arrays come to lie in a region, whatever makes them.

By NumPy's allocation hook (NEP 49), which is a context variable: what is set holds in this thread
and context, until it is reset. Threads that are started have NumPy's own; give a pool an
initializer, or replace NumPy's own (`allocate_in_for_good`). It takes compiled code, as the page
loop does, for NumPy calls it without the interpreter's lock.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from zcache.errors import EnvironmentProblem


def check() -> None:
    """Raises `EnvironmentProblem` if it is not compiled."""
    _compiled()


def new_arena(memory: Any, offset: int, size_bytes: int, threshold: int, socket: int) -> Any:
    """For arrays of at least `threshold` bytes, in the part of a region's memory from `offset` on.
    At `socket` the pager forgets pages on request. Raises `EnvironmentProblem`."""
    return _compiled().Arena(memory, offset, size_bytes, threshold, socket)


@contextmanager
def allocating_in(arena: Any) -> Iterator[Any]:
    """Arrays that are made meanwhile, in this context, lie in the arena, as long as they live."""
    set_handler = _compiled().set_handler
    table = _table_of_numpy()
    before = set_handler(table, arena.handler())
    try:
        yield arena
    finally:
        set_handler(table, before)


def allocate_in_for_good(arena: Any) -> None:
    """In all threads, and in all contexts that have no other handler; by NumPy's own handler, whose
    functions are replaced in place. Raises `EnvironmentProblem` if it is not as it always was."""
    compiled, table = _compiled(), _table_of_numpy()
    try:
        start, size_bytes = compiled.default_handler(table)
    except TypeError as error:
        raise EnvironmentProblem(f"{error}: a region is for the whole process once, and with no other hook") from None
    if not is_writable(start, start + size_bytes):
        raise EnvironmentProblem("this NumPy's own allocation handler cannot be changed: use region.numpy")
    compiled.replace_default(table, arena)


def is_writable(start: int, stop: int) -> bool:
    """Whether these addresses are memory that may be written to."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, permissions, *_ = line.split(maxsplit=2)
        begin, end = (int(bound, 16) for bound in bounds.split("-"))
        if begin <= start and stop <= end:
            return permissions[1] == "w"
    return False


def _compiled() -> ModuleType:
    try:
        import zcache.pager._numpy_hook as compiled
    except ImportError as error:
        raise EnvironmentProblem(
            f"region.numpy needs compiled code ({error}): install gcc and python3-dev, then zcache again; "
            "region.array needs none"
        ) from None
    return compiled


def _table_of_numpy() -> Any:
    """Its functions for C. They have their places since NumPy 1.22."""
    import numpy

    version = tuple(map(int, numpy.__version__.split(".")[:2]))
    if version < (1, 22):
        raise EnvironmentProblem(f"NumPy {numpy.__version__} has no allocation hook; 1.22 has")
    package = "numpy.core" if version < (2, 0) else "numpy._core"
    return vars(importlib.import_module(f"{package}._multiarray_umath"))["_ARRAY_API"]
