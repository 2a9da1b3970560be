"""What a server without `remote=` has of engines: nothing. No module, no library, no thread."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.nbd.conftest import RunningServer
from tests.support.engines import Engine, engines
from tests.support.other_code import python_of
from zcache.server.config import parse_config
from zcache.server.needs import thread_count

REPOSITORY: Final = Path(__file__).resolve().parents[2]
WORDS: Final = ("size=32M", "budget=4M", "encrypt=no")
#: Of engines, or of what talks to them.
OF_ENGINES: Final = ("zcache.remote", "zcache.server.remote_place", "zcache.reclaim.demotion", "redis", "ssl", "_ssl")


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code whose server, once it serves, writes a list of the modules that it has."""
    code = tmp_path_factory.mktemp("code")
    for package in ("zcache", "nbd_plugin"):
        shutil.copytree(REPOSITORY / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    plugin = code / "nbd_plugin/plugin.py"
    text = plugin.read_text()
    opened = f"_list = os.fdopen(os.open({str(code / 'modules')!r}, {os.O_WRONLY | os.O_CREAT | os.O_TRUNC}), 'w')\n"
    text = text.replace("API_VERSION = 2\n", opened + "API_VERSION = 2\n", 1)
    last = "        _server.begin_to_serve()\n"
    text = text.replace(last, last + "        print(*sys.modules, file=_list, flush=True)\n", 1)
    assert text.count("_list") == 2
    plugin.write_text(text)
    return code


@pytest.fixture
def both(tmp_path: Path) -> Iterator[list[Engine]]:
    with engines(tmp_path, 2) as found:
        yield found


@pytest.fixture
def served(telling: Path, tmp_path: Path) -> Iterator["Served"]:
    served = Served(telling, tmp_path)
    yield served
    served.close()


class Served:
    """Servers of that code."""

    def __init__(self, code: Path, folder: Path) -> None:
        self._code, self._folder = code, folder
        self._servers: list[Telling] = []

    def __call__(self, *words: str) -> RunningServer:
        folder = self._folder / f"server{len(self._servers)}"
        folder.mkdir()
        Telling.program = (python_of(self._code), "-I", "-m", "nbd_plugin.serve")
        self._servers.append(Telling(folder, words))
        return self._servers[-1]

    def modules(self) -> set[str]:
        """Of the last one."""
        return set((self._code / "modules").read_text().split())

    def close(self) -> None:
        for server in self._servers:
            server.check()
            assert server.stop() == 0, server.log.read_text()


class Telling(RunningServer):
    """A server that tells which modules it has."""


def threads_of(server: RunningServer) -> list[str]:
    names = Path(f"/proc/{server.status()['pid']}/task").glob("*/comm")
    return [name.read_text().strip() for name in names]


def threads_needed(*words: str) -> int:
    """Beside its first, without clients; as a server that starts with these words is to find room
    for."""
    pairs = [(key, value) for key, _, value in (word.partition("=") for word in (*words, "control=/tmp/control"))]
    return thread_count(parse_config(pairs), 0)


def libraries_of(server: RunningServer) -> set[str]:
    lines = Path(f"/proc/{server.status()['pid']}/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name.partition(".")[0] for line in lines if ".so" in line}


def of_engines(modules: set[str]) -> set[str]:
    return {name for name in modules if name in OF_ENGINES or name.startswith(OF_ENGINES[0])}


def test_without_engines_nothing_of_them_is_loaded(served: Served, tmp_path: Path) -> None:
    for word in ("overcommit=yes", f"backing={tmp_path}/backing"):
        server = served(*WORDS, word)
        assert of_engines(served.modules()) == set()
        assert "zcache.store.store" in served.modules()
        threads = threads_of(server)
        assert {"zcache-reclaim", "zcache-upkeep"} <= set(threads)
        assert not {"zcache-remote", "zcache-demote"}.intersection(threads)
        assert len(threads) - 1 == threads_needed(*WORDS, word)
        assert not {name for name in libraries_of(server) if name.startswith(("_ssl", "libssl"))}


@pytest.mark.parametrize("copies", [2, 1])
def test_what_is_loaded_with_engines_is_for_them_alone(
    both: list[Engine], served: Served, tmp_path: Path, copies: int
) -> None:
    """So the test before this one looks for the right things."""
    served(*WORDS, f"backing={tmp_path}/one")
    before = served.modules()
    remote = [f"remote={engine.url()}" for engine in both]
    words = (*WORDS, f"backing={tmp_path}/other", *remote, "remote_budget=16M", f"remote_copies={copies}")
    server = served(*words)
    more = served.modules() - before
    assert {"zcache.remote.remote", "zcache.remote.mender", "zcache.server.remote_place"} <= more
    ours = {name for name in more if name.startswith("zcache")}
    assert ours == of_engines(ours)
    threads = threads_of(server)
    assert "zcache-remote" in threads
    assert ("zcache-demote" in threads) == (copies == 2)
    assert len(threads) - 1 == threads_needed(*words)
