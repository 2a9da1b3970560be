"""`zcache systemd-unit`: what systemd needs, for where zcache lies.

The files in `systemd/` are written for a folder of sources, @ROOT@, with its `scripts/`. Installed
there is one command, `zcache`, and no README.
"""

import re
import sys
import sysconfig
from pathlib import Path
from typing import Final

from zcache.errors import BadInput

_FOLDER: Final = Path(__file__).resolve().with_name("systemd")
#: In a unit, these mean something in quotes, or end them; sh(1) is in one of its lines.
_UNQUOTABLE: Final = re.compile(r"""[\n"'\\$%`]""")


def unit() -> str:
    """zcache.service. Raises `BadInput` if that cannot name where zcache lies."""
    text = (_FOLDER / "zcache.service").read_text()
    root = sources()
    if root:
        return text.replace("@ROOT@", _named(root))
    program = _named(installed_command())
    text = re.sub(r'"@ROOT@/scripts/swap-(\w+)"', rf'"{program}" \1', text)
    text = re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE)
    return text.replace("scripts/zcache", program).replace("@ROOT@", sys.prefix)


def needrestart() -> str:
    """What keeps needrestart from restarting it."""
    return (_FOLDER / "needrestart.conf").read_text()


def sources() -> Path | None:
    """The folder of the sources, if this is run from there."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "scripts/swap-up").exists() else None


def installed_command() -> Path:
    """`zcache`, beside the Python that runs this, or where that installs commands."""
    beside = Path(sys.executable).with_name("zcache")
    return beside if beside.exists() else Path(sysconfig.get_path("scripts"), "zcache")


def _named(path: Path) -> str:
    if _UNQUOTABLE.search(str(path)):
        raise BadInput(f"{path}: a unit cannot name this: no quotes, backslashes, $ or %; move it")
    return str(path)
