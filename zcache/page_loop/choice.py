"""Which build of the page loop is in use: the compiled one, where there is one.

It is chosen when this is imported, which never fails: what cannot be had on request is said by
`check`, once somebody can be told in a line.
"""

import os
from typing import Final

from zcache.errors import BadInput, EnvironmentProblem
from zcache.page_loop import PageLoop
from zcache.page_loop.reference import PythonLoop

#: `python` or `compiled`, for those who compare them.
VARIABLE: Final = "ZCACHE_PAGE_LOOP"


def _choose(wanted: str) -> tuple[PageLoop, str]:
    """The loop, and why it is not the compiled one."""
    if wanted == PythonLoop.name:
        return PythonLoop(), f"{VARIABLE}={wanted}"
    try:
        from zcache.page_loop.compiled import CompiledLoop
    except ModuleNotFoundError:
        return PythonLoop(), "the compiled one was not built"
    except Exception as error:  # whatever a damaged object, or one of other code, comes to
        return PythonLoop(), str(error)
    return CompiledLoop(), ""


_WANTED: Final = os.environ.get(VARIABLE, "")
PAGE_LOOP, _WHY_NOT_COMPILED = _choose(_WANTED)


def check() -> None:
    """Raises `BadInput` or `EnvironmentProblem` if another was asked for."""
    if _WANTED not in ("", PythonLoop.name, "compiled"):
        raise BadInput(f"{VARIABLE}={_WANTED}: give python or compiled")
    if _WANTED == "compiled" and _WHY_NOT_COMPILED:
        raise EnvironmentProblem(f"{VARIABLE}={_WANTED}: {_WHY_NOT_COMPILED}")


def described() -> str:
    """Which it is, in one line."""
    if not _WHY_NOT_COMPILED:
        return "page loop: compiled"
    return f"page loop: in Python, which takes more CPU ({_WHY_NOT_COMPILED})"
