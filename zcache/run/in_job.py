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
import threading
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
    if not Path(plan["pager"]).exists():  # this has outlived the job
        print(f"zcache run has ended: process {os.getpid()} is not limited", file=sys.stderr)
        return
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


class _AfterNumpy(importlib.abc.MetaPathFinder):
    """Finds NumPy as everybody else does; once it has been imported, something is done. Many only
    look whether it is there."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self._here = threading.local()

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """For NumPy."""
        if name != NUMPY or getattr(self._here, "is_looking", False):
            return None
        self._here.is_looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._here.is_looking = False
        if spec and spec.loader:
            spec.loader = _Loader(spec.loader, self._imported)
        return spec

    def _imported(self) -> None:
        try:
            sys.meta_path.remove(self)
        except ValueError:  # another thread was first
            return
        self._do()


class _Loader(importlib.abc.Loader):
    """Another one, after which something is done."""

    def __init__(self, own: importlib.abc.Loader, then: Callable[[], None]) -> None:
        self._own, self._then = own, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As it does."""
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As it does, whose module it is from now on."""
        assert module.__spec__
        module.__spec__.loader = module.__loader__ = self._own
        self._own.exec_module(module)
        self._then()
