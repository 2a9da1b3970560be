"""Python runs this when it starts, in a job of `zcache run`: this folder is on its PYTHONPATH.

The job has a Python of its own, maybe, and knows nothing of zcache: so that is imported from where
it lies, and nothing beside it can be. And there may be another sitecustomize, which comes next.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _begin() -> None:
    package = _HERE.parents[1]
    if "zcache" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "zcache", package / "__init__.py", submodule_search_locations=[str(package)]
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["zcache"] = module
        spec.loader.exec_module(module)
    from zcache.run.in_job import begin

    begin()


def _go_on() -> None:
    places = [place for place in sys.path if Path(place).resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec(__name__, places)
    if spec and spec.loader:
        module = importlib.util.module_from_spec(spec)
        sys.modules[__name__] = module
        spec.loader.exec_module(module)


if sys.version_info >= (3, 11):  # noqa: UP036 (it is the job's)
    _begin()
else:
    sys.stderr.write("zcache run: the job's Python is older than 3.11: its arrays are not limited\n")
_go_on()
