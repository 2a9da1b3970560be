"""The builds of the page loop: both, wherever there is a C compiler."""

import shutil

from zcache.page_loop import PageLoop
from zcache.page_loop.reference import PythonLoop


def page_loops() -> list[PageLoop]:
    """The reference, and the compiled one; without that only where nobody could have built it."""
    try:
        from zcache.page_loop.compiled import CompiledLoop
    except ModuleNotFoundError:
        assert not shutil.which("cc"), "there is a C compiler, and no compiled page loop: scripts/setup"
        return [PythonLoop()]
    return [PythonLoop(), CompiledLoop()]
