"""Every program of ours, started by somebody whose settings are wrong: one by one, and all at once.

What the kernel hands on is then as in a process that was started with nothing wrong; and the
program does its work.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import nbd
import pytest

from tests.nbd.conftest import RunningServer
from tests.support.wrong_starts import ALL, PRIVILEGED, WRONGS, command, look, look_at_self
from zcache.control.ask import ask
from zcache.keeper import launch as keeper_process
from zcache.keeper.state import StateFolder, SwapState
from zcache.linux import process

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
    "zcache up": [str(REPOSITORY / "scripts/zcache"), "up", "--help"],
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


#: Servers and keepers cannot be dumped, nor looked into.
only_root_sees = pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at a server's environment and files")


def first_and_last_now(names: list[tuple[str, ...]]) -> list[Any]:
    """A minute and a half for all."""
    now = (names[0], names[-1])
    return [pytest.param(each, id=name_of(each), marks=[] if each in now else pytest.mark.thorough) for each in names]


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
    """What a program of Python's is like. Of its environment the kernel shows what it was started
    with; so it is that which it was under: the loader's and malloc's, and Python's if it was not
    told to do without."""
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


#: Any other program: what it is like, then it waits.
ANYBODY: Final = (
    "import json, sys; sys.path.append(sys.argv[1]); from tests.support.wrong_starts import look_at_self;"
    "print(json.dumps(look_at_self()), flush=True); sys.stdin.read()"
)


def anybody(names: tuple[str, ...]) -> dict[str, object]:
    with subprocess.Popen(
        command(names, [sys.executable, "-I", "-c", ANYBODY, str(REPOSITORY)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout
        own = json.loads(program.stdout.readline())
        found = {**look(program.pid), **own}
        program.kill()
    return found


@pytest.fixture(scope="module")
def right_anybody() -> dict[str, object]:
    return anybody(())


@pytest.mark.parametrize("names", wrongs(), ids=name_of)
def test_it_is_inherited_by_any_other_program(names: tuple[str, ...], right_anybody: dict[str, object]) -> None:
    """Or the tests below would test nothing."""
    found = anybody(names)
    for name in names:
        assert found[WRONGS[name][0]] != right_anybody[WRONGS[name][0]], name


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


@pytest.mark.parametrize(
    "names",
    [each for each in wrongs(without=BEFORE_US) if len(each) > 1 or WRONGS[each[0]][0] in look_at_self()],
    ids=name_of,
)
def test_what_only_a_process_itself_can_see_is_put_right(names: tuple[str, ...]) -> None:
    assert probe(names) == probe(())


def probe(names: tuple[str, ...]) -> Any:
    done = subprocess.run(
        command(names, [sys.executable, "-c", PROBE, str(REPOSITORY)]),
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    said, own = json.loads(done.stdout)
    assert said == ""
    return own


def server_by(starter: list[str], folder: Path, *words: str) -> RunningServer:
    """scripts/serve, by a program that becomes what its arguments say."""

    class Started(RunningServer):
        program = (*starter, str(REPOSITORY / "scripts/serve"))

    folder.mkdir(exist_ok=True)
    return Started(folder, (*WORDS, *words))


def server_of(names: tuple[str, ...], folder: Path, *words: str) -> RunningServer:
    """The same, by somebody with settings of his own."""
    names = tuple(name for name in names if name != "signals pending")  # by which the shell is ended
    return server_by(command(names, []), folder, *words)


@pytest.fixture(scope="module")
def right_server(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    server = server_of((), tmp_path_factory.mktemp("right"))
    try:
        return seen(server.process.pid)
    finally:
        assert server.stop() == 0


def seen(pid: int) -> dict[str, object]:
    """What a server is like, all of its environment included, but for what says who it is; of its
    files, which are strange."""
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


@only_root_sees
@pytest.mark.parametrize("names", wrongs(), ids=name_of)
def test_a_server_takes_nothing_of_it_and_serves(
    names: tuple[str, ...], tmp_path: Path, right_server: dict[str, object]
) -> None:
    server = server_of(names, tmp_path)
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


@only_root_sees
@pytest.mark.parametrize("names", first_and_last_now(wrongs()))
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


def started(names: tuple[str, ...], words: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(names, words), capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS, **options
    )


def test_a_tool_that_fails_is_not_taken_for_done(tmp_path: Path) -> None:
    """As swap-up runs them; with SIGCHLD ignored, there is no exit status to be had."""
    program = tmp_path / "program"
    program.write_text(
        "import sys; from zcache.inherited import start; from zcache.swap import area\n"
        "sys.exit(start.run('program', lambda: area.run(['false']) or 0))\n"
    )
    done = started(("SIGCHLD ignored",), [sys.executable, "-I", str(program)])
    assert "SwapError: false failed: exit status 1" in done.stderr


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_server_outlives_a_limit_on_cpu_time(tmp_path: Path) -> None:
    """That it is killed for where it stays: `limit` is in seconds."""
    limit = 2
    lower = f"import os, resource, sys; _, hard = resource.getrlimit(0); resource.setrlimit(0, ({limit}, hard)); "
    server = server_by([sys.executable, "-c", lower + "os.execv(sys.argv[1], sys.argv[1:])"], tmp_path)
    try:
        client = server.connect()
        data = b"".join(os.urandom(1024) + bytes(3072) for _ in range(256))

        def is_past_the_limit() -> bool:
            for _ in range(50):
                client.pwrite(data, 0)
            return cpu_seconds(server.process.pid) > 1.5 * limit

        until(is_past_the_limit)
        client.shutdown()
        server.check()
    finally:
        assert server.stop() == 0, server.log.read_text()


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1", "nowhere"])
def test_a_backing_may_be_named_beyond_ascii(tmp_path: Path, locale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    monkeypatch.setenv("LANG", locale)
    backing = tmp_path / "bk_ü"
    server = server_of((), tmp_path / "sörver", f"backing={backing}")
    try:
        assert server.status()["backing"] == str(backing)
        said = subprocess.run(
            [str(REPOSITORY / "scripts/zcache"), "status", "--control", str(server.control)],
            capture_output=True,
            check=True,
            timeout=DEADLINE_SECONDS,
        )
        assert f"backing: {backing}" in said.stdout.decode()
    finally:
        assert server.stop() == 0, server.log.read_text()
    assert backing.exists()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["scripts/serve"], 1, "zcache: say where to listen"),
        (["scripts/swap-up", "--priority"], 2, "swap-up: error: argument --priority"),
        (["scripts/swap-down", "/nowhere"], 1, "swap-down: "),
        (["scripts/swap-upgrade", "/nowhere"], 1, "swap-upgrade: error: "),
        (["scripts/zcache", "serve"], 1, "zcache: say where to listen"),
        (["scripts/zcache", "down", "/nowhere"], 1, "swap-down: "),
        (["scripts/zcache", "status", "--control", "/nowhere"], 2, "zcache: no server answers at /nowhere"),
        ([f"{sys.prefix}/bin/zcache", "check", "--control", "/nowhere"], 2, "zcache: no server answers at /nowhere"),
        (["scripts/vm", "--nonsense"], 2, "error: "),
        (["scripts/run", "--nonsense"], 2, "error: "),
        (["scripts/bench", "--nonsense"], 2, "error: "),
        (["scripts/pressure", "--nonsense"], 2, "error: "),
    ],
)
def test_every_script_starts_in_a_shell_of_conda(words: list[str], status: int, said: str) -> None:
    done = started(("PYTHONHOME", "PYTHONPATH"), [str(REPOSITORY / words[0]), *words[1:]])
    assert done.returncode == status and said in done.stderr, done.stderr
    assert "Python path configuration" not in done.stderr and "Traceback" not in done.stderr


#: A process that can lift no limit and go back to no priority, whatever the machine gives.
UNPRIVILEGED: Final = (
    "import ctypes, os, resource, sys; libc = ctypes.CDLL(None, use_errno=True);"
    "[libc.prctl(24, *map(ctypes.c_ulong, (capability, 0, 0, 0))) for capability in (23, 24)];"  # PR_CAPBSET_DROP
    "resource.setrlimit(resource.RLIMIT_NICE, (0, 0)); os.nice(5); resource.setrlimit(resource.RLIMIT_CPU, (60, 60));"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_what_cannot_be_put_right_is_said_in_one_line(tmp_path: Path) -> None:
    server = server_by([sys.executable, "-c", UNPRIVILEGED], tmp_path)
    assert server.stop() == 0
    (line,) = [line for line in server.log.read_text().splitlines() if "inherited" in line]
    assert line.startswith("zcache: WARNING: ")
    assert "the nice value (" in line and "processor time (ulimit -t) is 60 s" in line


def test_of_its_keeper_it_is_said_once(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.create()
    with folder.log.open("ab") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-c", UNPRIVILEGED, *keeper_process.command(folder, WORDS)], stdout=log, stderr=log
        )
    identity = process.identify(keeper.pid)
    assert identity
    folder.save(SwapState(identity))
    until(lambda: keeper_process.is_answering(folder.control))
    keeper.terminate()
    assert keeper.wait(DEADLINE_SECONDS) == 0
    (line,) = [line for line in folder.log.read_text().splitlines() if "inherited" in line]
    assert line.startswith("zcache keeper: WARNING: ") and "the nice value (" in line


@only_root_sees
def test_an_older_keeper_starts_a_server_of_this_code(tmp_path: Path) -> None:
    """By the command line, the variables and the descriptors that it has always given, in the
    environment that it was itself started in."""
    program = f"""
import os, subprocess, sys
from zcache.keeper import server_process
server_process.SERVE = (sys.executable, "-P", "-m", "nbd_plugin.serve")
from zcache.keeper import __main__ as keeper
os.environ |= {{"LD_LIBRARY_PATH": "/opt/conda/lib", "PYTHONWARNINGS": "error", "LC_ALL": "C", "LISTEN_PID": "1"}}
sys.exit(keeper.main({[str(tmp_path / "stäte"), *WORDS]!r}))
"""
    folder = StateFolder(tmp_path / "stäte")
    folder.create()
    with folder.log.open("ab") as log:
        keeper = subprocess.Popen([sys.executable, "-P", "-c", program], stdout=log, stderr=log)
    try:
        identity = process.identify(keeper.pid)
        assert identity
        folder.save(SwapState(identity))
        until(
            lambda: keeper_process.is_answering(folder.control) or keeper.poll() is not None,
            lambda: folder.log.read_text(),
        )
        server = int(ask(folder.control, "status")["pid"])
        assert not {"LD_LIBRARY_PATH", "PYTHONWARNINGS"} & set(seen(server)["environment"])  # type: ignore[call-overload]
    finally:
        keeper.terminate()
        assert keeper.wait(DEADLINE_SECONDS) == 0, folder.log.read_text()
    assert "WARNING: inherited" not in folder.log.read_text()


#: As systemd starts a program for a socket, and a shell one with `9<>BACKING`.
GIVING: Final = (
    "import os, sys; socket, disk = map(int, sys.argv[1:3]); os.dup2(disk, 9); os.dup2(socket, 3);"
    "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())}; os.execv(sys.argv[3], sys.argv[3:])"
)


def test_descriptors_that_somebody_named_are_kept(tmp_path: Path) -> None:
    path, control = tmp_path / "socket", tmp_path / "control"
    with (
        socket.socket(socket.AF_UNIX) as listener,
        (tmp_path / "backing").open("w+b") as file,
        (tmp_path / "log").open("wb") as log,
    ):
        listener.bind(str(path))
        listener.listen()
        file.truncate(64 << 20)
        given = (listener.fileno(), file.fileno())
        start = [sys.executable, "-c", GIVING, *map(str, given), str(REPOSITORY / "scripts/serve")]
        words = ["size=32M", "budget=8M", "backing=/dev/fd/9", f"control={control}"]
        server = subprocess.Popen([*start, *words], pass_fds=given, stdout=log, stderr=log)
    try:
        until(lambda: keeper_process.is_answering(control) or server.poll() is not None)
        assert server.poll() is None, (tmp_path / "log").read_text()
        client = nbd.NBD()
        client.connect_unix(str(path))
        client.pwrite(b"precious" * 512, 4096)
        assert client.pread(4096, 4096) == b"precious" * 512
        client.shutdown()
    finally:
        server.terminate()
        assert server.wait(DEADLINE_SECONDS) == 0, (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_server_outlives_what_its_starter_ignored(tmp_path: Path, number: signal.Signals) -> None:
    """nohup, and `&` in a script. It ends on SIGTERM all the same."""
    ignore = (
        f"import os, signal, sys; signal.signal({int(number)}, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    server = server_by([sys.executable, "-c", ignore], tmp_path)
    server.process.send_signal(number)
    client = server.connect()
    client.pwrite(b"precious" * 512, 0)
    client.shutdown()
    server.check()
    assert server.stop() == 0


@pytest.mark.parametrize(
    "words",
    [["scripts/serve", "-U", "socket", *WORDS], ["scripts/swap-up", *WORDS, "backing=b"], ["scripts/swap-down", "f"]],
)
def test_a_working_folder_that_is_gone_is_said_in_one_line(words: list[str]) -> None:
    done = started(("removed folder",), [str(REPOSITORY / words[0]), *words[1:]])
    lines = [line for line in done.stderr.splitlines() if "getcwd" not in line]  # the shell's own
    assert done.returncode == 1 and len(lines) == 1 and ("is gone" in lines[0] or os.geteuid() != 0), done.stderr
