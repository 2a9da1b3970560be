"""In the job: NumPy's large arrays lie in a region, from when it is imported on.

Nothing of the job's is imported for that. A process that finds no room, because others of the job
have it all, says so and goes on without.
"""

import atexit
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from zcache.errors import BadInput, ZcacheError
from zcache.pager.region import Region

#: Its name in the environment: JSON of a `Plan`'s fields (run.py).
VARIABLE: Final = "ZCACHE_RUN"
NUMPY: Final = "numpy"
#: The end of the name of a file in the plan's folder: what arrays took, at most, in bytes.
FIGURES_SUFFIX: Final = ".arrays"

#: The region of this process, for as long as it lives.
_REGIONS: list[Region] = []


def begin() -> None:
    """At the start of Python."""
    words = os.environ.get(VARIABLE)
    if words is None:  # somebody has kept our folder on the path, and nothing else
        return
    plan = json.loads(words)
    if NUMPY in sys.modules:
        _take_a_region(plan)
    else:
        sys.meta_path.insert(0, _AfterNumpy(lambda: _take_a_region(plan)))


def _take_a_region(plan: dict[str, Any]) -> None:
    """Raises `SystemExit` if there can be none: nobody is to take a job for limited that is not."""
    try:
        region = Region(plan["size"], plan["limit"], pager=plan["pager"], user_mode_only=plan["user_mode_only"])
        region.numpy_for_good(plan["threshold"])
    except BadInput:
        print(
            f"zcache run: process {os.getpid()} is not limited: others of the job have all of the limit (--processes)",
            file=sys.stderr,
        )
        return
    except (ZcacheError, OSError) as problem:
        raise SystemExit(f"zcache run: {problem}") from None
    _REGIONS.append(region)
    pid = os.getpid()

    def note() -> None:
        if os.getpid() == pid:
            part = Path(plan["folder"], f"{pid}.part")  # it may be ended in the middle
            part.write_text(str(region.numpy_bytes[1]))
            part.rename(part.with_suffix(FIGURES_SUFFIX))

    atexit.register(note)


class _AfterNumpy(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds NumPy as everybody else does; when it has been imported, something is done."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self._loader: importlib.abc.Loader | None = None

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """For NumPy, once."""
        if name != NUMPY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As its own loader does."""
        assert self._loader
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As its own loader does, which it has from now on; and then what is to be done."""
        assert self._loader and module.__spec__
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._do()
