"""Running code that lies somewhere else than the code under test: a changed copy, for one.

Our programs are deaf to PYTHONPATH, and start each other by the interpreter that they run in. So
other code is given that way: an interpreter of its own, in a virtual environment that has all that
ours has, but for zcache.
"""

import sys
import sysconfig
from pathlib import Path
from typing import Final

#: How what `pip install` has made of our own code is named.
_OURS: Final = ("zcache", "__editable__", "nbd_plugin")


def python_of(code: Path) -> str:
    """The interpreter that imports zcache from the folder `code`; made beside it."""
    environment = code / ".other-code"
    packages = environment / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    python = environment / "bin/python"
    if not python.exists():
        packages.mkdir(parents=True)
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith(_OURS):
                (packages / entry.name).symlink_to(entry)
        (packages / "zcache.pth").write_text(f"{code}\n")
        (environment / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
        python.parent.mkdir()
        python.symlink_to(Path(sys.executable).resolve())
    return str(python)
