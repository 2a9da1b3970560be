"""Every program of ours, started by somebody whose settings are wrong: one by one, and all at once.

What the kernel hands on is then as in a process that was started with nothing wrong; and the program does its work.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.nbd.conftest import RunningServer
from tests.support.wrong_starts import ALL, PRIVILEGED, WRONGS, command, look, look_at_self
from zcache.control_client import ask
from zcache.swap import keeper_process, process
from zcache.swap.state import StateFolder, SwapState

REPOSITORY: Final = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS: Final = 60.0
WORDS: Final = ("size=64M", "budget=16M", "overcommit=yes")
NICE_CAPABILITY: Final = 1 << 23

#: A command of each kind, with words by which it prints something.
COMMANDS: Final = {
    "swap-up": [str(REPOSITORY / "scripts/swap-up"), "--help"],
    "swap-down": [str(REPOSITORY / "scripts/swap-down"), "--help"],
    "swap-upgrade": [str(REPOSITORY / "scripts/swap-upgrade"), "--help"],
    "zcache": [str(REPOSITORY / "scripts/zcache"), "--help"],
    "zcache sleep": [sys.executable, "-I", "-m", "zcache.swap.sleep"],
    "an older unit's zcache sleep": [sys.executable, "-P", "-m", "zcache.swap.sleep"],
}
#: By which Python, unless it is told to do without, ends or runs another's code.
BEFORE_US: Final = frozenset({"PYTHONHOME", "PYTHONPATH"})
#: What a program says of itself, after `put_right`.
PROBE: Final = (
    "import json, sys; sys.path.append(sys.argv[1]); from zcache.inherited.start import put_right; said = put_right();"
    "from tests.support.wrong_starts import look_at_self; print(json.dumps([said, look_at_self()]))"
)


def is_privileged() -> bool:
    """Whether what is inherited can be put right by this user at all."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) & NICE_CAPABILITY)


def wrongs(*, without: frozenset[str] = frozenset()) -> list[Any]:
    """One by one, and all at once, as far as this user's processes can come back from them."""
    spared = without if is_privileged() else without | PRIVILEGED
    left = [name for name in WRONGS if name not in spared]
    return [*((name,) for name in left), tuple(name for name in ALL if name not in spared)]


def name_of(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else "all at once"


def until(condition: Callable[[], object], explain: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)


def waits_to_write(pid: int) -> bool:
    return "pipe_write" in Path(f"/proc/{pid}/wchan").read_text()


@contextlib.contextmanager
def printing(words: list[str]) -> Iterator[int]:
    """The pid of a command that has begun to print, and is kept from going on: the pipe is full."""
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, bytes(size))
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer) as program:
        os.close(writer)
        try:
            until(lambda: program.poll() is not None or waits_to_write(program.pid))
            assert program.poll() is None, os.read(reader, 1 << 16)
            yield program.pid
        finally:
            os.close(reader)
            program.kill()


def of_python(pid: int) -> dict[str, object]:
    """What a program of Python's is like. Of its environment the kernel shows what it was started with; so it is that
    which it was under: the loader's and malloc's, and Python's if it was not told to do without."""
    found = look(pid)
    environment = found["environment"]
    assert isinstance(environment, dict)
    is_isolated = b"-I" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    effective = ("LD_", "MALLOC_", "GLIBC_", *(() if is_isolated else ("PYTHONPATH", "PYTHONDEV", "PYTHONOPT")))
    return {**found, "environment": [name for name in environment if name.startswith(effective)]}


@pytest.fixture(scope="module")
def right() -> dict[str, dict[str, object]]:
    """Each command as it is when nothing was wrong."""
    found = {}
    for name, words in COMMANDS.items():
        with printing(command((), words)) as pid:
            found[name] = of_python(pid)
    return found


@pytest.mark.parametrize("names", wrongs(), ids=name_of)
def test_it_is_inherited_by_any_other_program(names: tuple[str, ...]) -> None:
    """Or the tests below would test nothing."""
    probe = [sys.executable, "-I", "-c", "import sys; sys.path.append(sys.argv[1]); import json, time; "]
    probe[-1] += "from tests.support import wrong_starts as w; print(json.dumps(w.look_at_self()), flush=True); "
    probe[-1] += "sys.stdin.read()"
    found = []
    for each in ((), names):
        with subprocess.Popen(
            command(each, [*probe, str(REPOSITORY)]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as program:
            assert program.stdout
            own = json.loads(program.stdout.readline())
            found.append({**look(program.pid), **own})
            program.kill()
    for name in names:
        assert found[0][WRONGS[name][0]] != found[1][WRONGS[name][0]], name


@pytest.mark.parametrize("names", wrongs(without=frozenset({"no environment", "removed folder"})), ids=name_of)
def test_a_command_takes_nothing_of_it(names: tuple[str, ...], right: dict[str, dict[str, object]]) -> None:
    take_nothing("swap-down", names, right)


@pytest.mark.parametrize("which", COMMANDS)
def test_all_commands_take_nothing_of_all(which: str, right: dict[str, dict[str, object]]) -> None:
    *_, names = wrongs()
    if which.startswith("an older"):  # Python is another before any code of ours runs
        names = tuple(name for name in names if name not in BEFORE_US)
    take_nothing(which, names, right)


def take_nothing(which: str, names: tuple[str, ...], right: dict[str, dict[str, object]]) -> None:
    names = tuple(name for name in names if name != "removed folder")  # of which the shell would print something
    with printing(command(names, COMMANDS[which])) as pid:
        assert of_python(pid) == right[which]


@pytest.mark.parametrize("names", wrongs(without=BEFORE_US), ids=name_of)
def test_what_only_a_process_itself_can_see_is_put_right(names: tuple[str, ...]) -> None:
    done = subprocess.run(
        command(names, [sys.executable, "-c", PROBE, str(REPOSITORY)]),
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    said, own = json.loads(done.stdout)
    assert (said, own) == ("", look_at_self())


class Started(RunningServer):
    """scripts/serve, by somebody with settings of his own."""

    def __init__(self, folder: Path, names: tuple[str, ...], *words: str) -> None:
        folder.mkdir()
        names = tuple(name for name in names if name != "signals pending")  # by which the shell is ended
        self.program = tuple(command(names, [str(REPOSITORY / "scripts/serve")]))
        super().__init__(folder, (*WORDS, *words))


@pytest.fixture(scope="module")
def right_server(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    server = Started(tmp_path_factory.mktemp("right") / "server", ())
    try:
        return seen(server.process.pid)
    finally:
        assert server.stop() == 0


def seen(pid: int) -> dict[str, object]:
    """What a server is like, all of its environment included, but for what says who it is; of its files, which are
    strange."""
    found = look(pid)
    environment, files = found["environment"], found.pop("files")
    assert isinstance(environment, dict) and isinstance(files, list)
    for name in ("PWD", "OLDPWD", "SHLVL", "_", "ZCACHE_STEPS", "LISTEN_PID", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    return {**found, "strange files": [number for number in files if is_strange(pid, number)]}


def is_strange(pid: int, number: int) -> bool:
    """Whether a file is one of those that were open for no reason."""
    with contextlib.suppress(OSError):
        return number > 2 and Path(f"/proc/{pid}/fd/{number}").readlink() == Path("/dev/null")
    return False


@pytest.mark.parametrize("names", wrongs(), ids=name_of)
def test_a_server_takes_nothing_of_it_and_serves(
    names: tuple[str, ...], tmp_path: Path, right_server: dict[str, object]
) -> None:
    server = Started(tmp_path / "server", names)
    try:
        client = server.connect()
        client.pwrite(b"precious" * 512, 4096)
        found = seen(server.process.pid)
        if "removed folder" in names:
            found["folder"] = right_server["folder"]
        if "no environment" in names:
            found["environment"] = right_server["environment"]
        assert found == right_server
        assert client.pread(4096, 4096) == b"precious" * 512
        client.shutdown()
        server.check()
    finally:
        assert server.stop() == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()


class Kept:
    """A keeper, by somebody with settings of his own."""

    def __init__(self, path: Path, names: tuple[str, ...] = ()) -> None:
        self.folder = StateFolder(path)
        self.folder.create()
        with self.folder.log.open("ab") as log:
            self.process = subprocess.Popen(
                command(names, keeper_process.command(self.folder, WORDS)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        identity = process.identify(self.process.pid)
        assert identity
        self.folder.save(SwapState(identity))
        until(lambda: keeper_process.is_answering(self.folder.control) or self.process.poll() is not None, self.log)

    def log(self) -> str:
        return self.folder.log.read_text()

    def processes(self) -> list[dict[str, object]]:
        """Of keeper, server and standby, what each is like."""
        server = int(ask(self.folder.control, "status")["pid"])
        until(lambda: len(self.children()) + len(children_of(server)) == 2, self.log)
        standby = [pid for pid in (*self.children(), *children_of(server)) if pid != server]
        keeper = of_python(self.process.pid)
        keeper.pop("files")
        return [keeper, *(seen(pid) for pid in (server, *standby))]

    def children(self) -> list[int]:
        return children_of(self.process.pid)

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait(DEADLINE_SECONDS) == 0, self.log()


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def right_keeper(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    kept = Kept(tmp_path_factory.mktemp("right") / "state")
    try:
        return kept.processes()
    finally:
        kept.end()


@pytest.mark.parametrize("names", wrongs(), ids=name_of)
def test_a_keeper_takes_nothing_of_it_and_ends_on_sigterm(
    names: tuple[str, ...], tmp_path: Path, right_keeper: list[dict[str, object]]
) -> None:
    kept = Kept(tmp_path / "state", names)
    try:
        found = kept.processes()
        if "no environment" in names:
            for each, wanted in zip(found, right_keeper, strict=True):  # PATH alone is left of it
                each["environment"] = wanted["environment"]
        assert found == right_keeper
    finally:
        kept.end()
