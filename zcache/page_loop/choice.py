"""Which build of the page loop is in use: the compiled one, where there is one."""

import os
from typing import Final

from zcache.errors import EnvironmentProblem
from zcache.page_loop import PageLoop
from zcache.page_loop.reference import PythonLoop

#: `python` or `compiled`, for those who compare them.
VARIABLE: Final = "ZCACHE_PAGE_LOOP"


def _choose(wanted: str) -> tuple[PageLoop, str]:
    """The loop, and why it is not the compiled one. Raises `EnvironmentProblem`."""
    if wanted == PythonLoop.name:
        return PythonLoop(), f"{VARIABLE}={wanted}"
    try:
        from zcache.page_loop.compiled import CompiledLoop
    except ImportError as error:
        reason = "the compiled one was not built" if isinstance(error, ModuleNotFoundError) else str(error)
        if wanted:
            raise EnvironmentProblem(f"{VARIABLE}={wanted}: {reason}") from None
        return PythonLoop(), reason
    return CompiledLoop(), ""


PAGE_LOOP, _WHY_NOT_COMPILED = _choose(os.environ.get(VARIABLE, ""))


def described() -> str:
    """Which it is, in one line."""
    if not _WHY_NOT_COMPILED:
        return "page loop: compiled"
    return f"page loop: in Python, which takes more CPU ({_WHY_NOT_COMPILED})"
