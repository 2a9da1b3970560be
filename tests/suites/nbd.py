"""nbd's own tests (`tests/run/simple_test`): logs of a disk under load that are replayed and
verified, with TLS and without, requests larger than the server takes, the handshake.

Its client is compiled as it is. Its nbd-server, which the script starts as ../../nbd-server, is a
stand-in; beside it lies the real one, for what fails.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from tests.suites import sources
from tests.suites.building import make
from tests.suites.running import Case, Runner, require

NAME: Final = "nbd"
CONTROL: Final = "integrity"

EXCLUDED: Final[Mapping[str, str]] = {
    "dirconfig": "reads nbd-server's own configuration folders",
    "tree": "stores the disk as nbd-server's tree of files",
    "rotree": "stores the disk as nbd-server's tree of files",
}

_TESTS: Final = (
    *("cfg1", "cfgmulti", "cfgnew", "cfgsize", "write", "flush", "integrity", "dirconfig", "list", "inetd"),
    *("rowrite", "tree", "rotree", "unix", "integrityhuge", "handshake", "tls", "tlswrongcert", "tlshuge"),
)


def prepare(runner: Runner) -> Iterator[Case]:
    """A folder as the script wants it: itself, its client and logs, and two folders up the
    servers."""
    require({"gcc": "gcc", "make": "make", "pkg-config": "pkgconf", "bison": "bison", "flex": "flex"})
    tree = sources.unpacked(NAME)
    make(
        tree,
        tree / "tests/run/nbd-tester-client",
        ("./configure", "DB2M=/bin/true"),  # no manual pages
        ("make", "nbd-server", "nbd-client"),
        ("make", "-C", "tests/run", "nbd-tester-client"),
    )
    place = runner.work / "tree/tests/run"
    place.mkdir(parents=True)
    for name in ("simple_test", "nbd-tester-client", "integrity-test.tr", "integrityhuge-test.tr", "certs"):
        (place / name).symlink_to(tree / "tests/run" / name)
    (runner.work / "tree/nbd-client").symlink_to(tree / "nbd-client")
    runner.stand_in(runner.work / "tree/nbd-server", "stand_in_nbd_server")
    environment = {"ZCACHE_SUITES_NBD_SERVER": str(tree / "nbd-server")}
    for name in _TESTS:
        yield Case(name, ("sh", "./simple_test", f"./{name}"), place, environment)
