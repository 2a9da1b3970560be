"""libnbd's own tests: nbdcopy, nbdinfo, nbddump and nbdfuse, and its parallel clients, which keep a
shadow of the disk.

The scripts that ask for nbdkit's memory or pattern plugin are run; the clients are compiled as they
are.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from tests.suites import sources
from tests.suites.building import configure, make
from tests.suites.running import Case, Runner, require

NAME: Final = "libnbd"

#: A copy to it and back, compared.
CONTROL: Final = "copy/copy-nbd-to-nbd.sh"

EXCLUDED: Final[Mapping[str, str]] = {}

_FOLDERS: Final = ("copy", "dump", "fuse", "info", "tests")
#: The client that a script of the same name runs, and its source.
_CLIENTS: Final = {
    "aio-parallel": "aio-parallel",
    "aio-parallel-tls": "aio-parallel",
    "aio-parallel-load": "aio-parallel-load",
    "aio-parallel-load-tls": "aio-parallel-load",
    "synch-parallel": "synch-parallel",
    "synch-parallel-tls": "synch-parallel",
}
_USES: Final = re.compile(r"^[^#\n]*\b(?:memory|pattern) (?:size=)?[$0-9]", re.MULTILINE)


def prepare(runner: Runner) -> Iterator[Case]:  # noqa: ARG001
    """Its scripts, in their folders."""
    require({"gcc": "gcc", "fusermount3": "fuse3", "jq": "jq", "psktool": "gnutls-bin", "qemu-img": "qemu-utils"})
    tree = sources.unpacked(NAME)
    configure(tree / "tests/functions.sh.in", tree / "tests/functions.sh", abs_top_srcdir=str(tree))
    (tree / "config.h").touch()
    make(tree / "tests", tree / "tests/keys.psk", ("psktool", "-u", "alice", "-p", "keys.psk"))
    for name, source in _CLIENTS.items():
        tls = ("-DTLS=1",) if name != source else ()
        flags = (*tls, "-I.", "-Icommon/include", "-lnbd", "-lpthread")
        make(tree, tree / "tests" / name, ("gcc", "-O1", "-o", f"tests/{name}", f"tests/{source}.c", *flags))
    environment = {
        "srcdir": ".",
        "NBDKIT": "nbdkit",
        "PSKTOOL": "psktool",
        "CERTTOOL": "certtool",
        "QEMU_NBD": "/usr/bin/qemu-nbd",
    }
    for folder in _FOLDERS:
        for script in sorted((tree / folder).glob("*.sh")):
            if _USES.search(script.read_text()):
                yield Case(f"{folder}/{script.name}", ("bash", f"./{script.name}"), tree / folder, environment)
