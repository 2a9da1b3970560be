"""nbdkit's own tests: its filters, its --run, protocol variants, limits and bad input, over zcache
instead of memory.

Only the scripts that ask for its memory plugin come to a server of ours; the others are not run.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from tests.suites import sources
from tests.suites.building import configure, make
from tests.suites.running import Case, Runner, require

NAME: Final = "nbdkit"

#: Copying data through and comparing it.
CONTROL: Final = "test-cow-on-read.sh"

EXCLUDED: Final[Mapping[str, str]] = {
    "test-exitwhen-script.sh": "has the server run a program, which zcache has given up the right to",
    "test-nbdkit-backend-debug.sh": "looks for what the memory plugin itself logs",
}

_USES_MEMORY: Final = re.compile(r"nbdkit\b(?:[^#\n]|\\\n)*\bmemory\b|^\s+memory\b", re.MULTILINE)


def prepare(runner: Runner) -> Iterator[Case]:  # noqa: ARG001
    """Its scripts, with the one file that its configure makes of a template."""
    require({"psktool": "gnutls-bin", "nbdsh": "python3-libnbd", "qemu-img": "qemu-utils"})
    tree = sources.unpacked(NAME)
    tests = tree / "tests"
    configure(tests / "functions.sh.in", tests / "functions.sh", abs_top_srcdir=str(tree))
    make(tests, tests / "keys.psk", ("psktool", "-u", "qemu", "-p", "keys.psk"))
    for script in sorted(tests.glob("test-*.sh")):
        if _USES_MEMORY.search(script.read_text(errors="replace")):
            environment = {"srcdir": ".", "abs_top_srcdir": str(tree), "abs_top_builddir": str(tree)}
            yield Case(script.name, ("bash", f"./{script.name}"), tests, environment)
