"""What swap-up takes that no Python package brings: said before anything is done."""

import importlib.util
import shutil

from zcache.errors import SwapError


def check() -> None:
    """Raises `SwapError` that names the Debian packages that are missing."""
    if shutil.which("nbdkit") is None:
        raise SwapError("nbdkit is missing: apt-get install nbdkit nbdkit-plugin-python")
    if importlib.util.find_spec("nbd") is None:
        raise SwapError(
            "libnbd's Python module is missing: apt-get install python3-libnbd, and let Debian's packages be seen in "
            "zcache's environment (/usr/bin/python3 -m venv --system-site-packages): it is not on PyPI"
        )
