"""A real server in a real control group, of whichever version the machine has: as root. What does
not fit is refused in one line; what serves is not killed, and loses nothing."""

import errno
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nbd
import pytest

from nbd_plugin.front_end import CLIENT_THREADS
from tests.nbd.conftest import RunningServer, Serve
from zcache.bench import groups
from zcache.bench.groups import Group, try_budget
from zcache.errors import EnvironmentProblem
from zcache.hardening.log_pipe import NO_BUFFER
from zcache.keeper.launch import is_answering

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 1 << 20


def group_or_skip(controller: str) -> Iterator[Group]:
    try:
        making = groups.group(controller)
        cage = making.__enter__()
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    try:
        yield cage
    finally:
        making.__exit__(None, None, None)


@pytest.fixture
def memory() -> Iterator[Group]:
    yield from group_or_skip("memory")


@pytest.fixture
def tasks() -> Iterator[Group]:
    yield from group_or_skip("pids")


@pytest.fixture
def disk() -> Iterator[Path]:
    """No tmpfs, which would count towards the group."""
    with tempfile.TemporaryDirectory(prefix="zcache-test-", dir="/var/tmp") as folder:
        yield Path(folder)


def test_what_does_not_fit_is_refused_with_figures_by_which_it_fits(memory: Group, disk: Path) -> None:
    memory.set_limit(64 * MIB)
    refused = try_budget(memory, disk, "40M", 64 * MIB)
    assert refused.is_good(1, is_breathing=False) and refused.is_refused, refused
    assert str(memory.path) in refused.said and "is 64 MiB, and leaves " in refused.said
    served = try_budget(memory, disk, str(groups.largest(refused.said, 40 * MIB)), 64 * MIB)
    assert served.is_good(0, is_breathing=False) and not served.is_refused, served


def test_a_budget_that_breathes_stays_below_the_limit_and_gives_way(memory: Group, disk: Path) -> None:
    memory.set_limit(64 * MIB)
    outcome = try_budget(memory, disk, "4M..90%", 96 * MIB, growing_mib=10)
    assert outcome.is_good(str(memory.path) in outcome.said, is_breathing=True) and not outcome.is_refused, outcome
    first_bytes, most_bytes = outcome.budget_bytes
    assert first_bytes == 4 * MIB and 12 * MIB < most_bytes < 40 * MIB and outcome.given_way_bytes > 2 * MIB, outcome


def test_the_ceiling_in_the_log_is_below_the_limit(memory: Group, disk: Path) -> None:
    """The least budget has its memory by then, and is not counted as left."""
    memory.set_limit(128 * MIB)
    outcome = try_budget(memory, disk, "40M..90%", 150 * MIB)
    (ceiling,) = re.findall(r"the budget grows to (\d+) MiB there, as things stand", outcome.said)
    assert outcome.is_good(1, is_breathing=True) and 40 < int(ceiling) < 128 - 16 - 15, outcome
    assert abs(outcome.budget_bytes[1] - int(ceiling) * MIB) < 8 * MIB, outcome  # what else is used moves a little


def test_a_share_is_of_the_group_and_not_of_the_machine(memory: Group, disk: Path) -> None:
    memory.set_limit(100 * MIB)
    outcome = try_budget(memory, disk, "25%", 50 * MIB)
    assert outcome.is_good(0, is_breathing=False) and outcome.budget_bytes == (25 * MIB, 25 * MIB), outcome


#: As a container has it: its own group is all that there is, and read-only; and no privileges.
CONTAINER = """
mount --make-private "$2" && mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 &&
    exec setpriv --bounding-set=-all --inh-caps=-all "$@"
"""


def test_in_a_container_the_limit_is_seen_and_what_is_lacking_is_one_line(memory: Group, disk: Path) -> None:
    memory.set_limit(64 * MIB)
    top = memory.path.parent
    apart = ("unshare", "--mount", "--propagation", "unchanged")  # the root need not be a mount: a chroot
    cage = memory._replace(around=(*apart, "sh", "-c", CONTAINER, "sh", str(memory.path), str(top)))
    refused = try_budget(cage, disk, "40M", 64 * MIB)
    assert refused.is_refused and refused.own_lines()[0].startswith(f"zcache: {top}/memory."), refused
    served = try_budget(cage, disk, "8M", 16 * MIB)
    assert served.is_good(0, is_breathing=False), served
    assert len(served.own_lines()) == 1 and "NOT safe to swap to itself: without " in served.said, served


def test_a_request_that_the_group_has_no_room_for_fails_and_the_server_lives(
    memory: Group, disk: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    """nbdkit keeps a buffer of the request's size for each connection: 96 MiB here, where 28 are
    left."""
    memory.set_limit(128 * MIB)
    monkeypatch.setattr(RunningServer, "program", tuple(memory.start(*RunningServer.program)))
    server = serve("size=192M", "budget=72M", f"backing={disk}/backing")
    clients = [server.connect() for _ in range(3)]
    buffer = random.Random(1).randbytes(32 * MIB)
    outcomes = [
        is_done(request)
        for client in (*clients, *clients)
        for request in (partial(client.pwrite, buffer, 0), partial(client.pread, len(buffer), 0))
    ]
    assert memory.killed() == 0 and False in outcomes, outcomes
    assert f"Cannot allocate memory{NO_BUFFER}\n" in server.log.read_text()
    for number in range(64):  # what there is room for, on the same connections
        block, client = random.Random(number).randbytes(MIB), clients[number % 3]
        client.pwrite(block, number * MIB)
        assert client.pread(MIB, number * MIB) == block
    assert memory.killed() == 0


def is_done(request: Callable[[], object]) -> bool:
    """Or there was no memory for it."""
    try:
        request()
    except nbd.Error as error:
        assert error.errnum == errno.ENOMEM, error
        return False
    return True


@pytest.mark.thorough
def test_groups_of_64_128_and_200_mib() -> None:
    try:
        with groups.group():
            pass
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    assert groups.main([]) == 0


def start(cage: Group, folder: Path, most: int, *program: str) -> tuple["subprocess.Popen[str]", Path]:
    """A server that may have no more than so many processes and threads, and where it listens."""
    deadline = time.monotonic() + 30
    while int((cage.path / "pids.current").read_text()):  # who watched the start of the one before
        assert time.monotonic() < deadline, "whoever should collect it does not"
        time.sleep(0.05)
    (cage.path / "pids.max").write_text(str(most))
    socket = folder / "socket"
    words = ["-U", str(socket), "size=16M", "budget=24M", f"control={folder}/control"]
    command = cage.start(*(program or (sys.executable, "-P", "-m", "nbd_plugin.serve")), *words)
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY), socket


def refusal(server: "subprocess.Popen[str]") -> str:
    """The one line in which it says why it does not start."""
    _, said = server.communicate(timeout=60)
    assert server.returncode == 1 and len(said.splitlines()) == 1, said
    return said


@pytest.mark.parametrize("program", [(), ("scripts/serve",)], ids=["server", "script"])
@pytest.mark.parametrize("most", [3, 4, 5, 6])
def test_too_few_threads_are_refused_in_one_line(
    tasks: Group, tmp_path: Path, most: int, program: tuple[str, ...]
) -> None:
    said = refusal(start(tasks, tmp_path, most, *program)[0])
    assert f"{tasks.path}/pids.max is {most}, and " in said and "raise it to " in said
    assert list(tmp_path.iterdir()) == []


def test_the_number_that_is_given_is_enough_for_clients(tasks: Group, tmp_path: Path) -> None:
    """Taken at its word until it is content."""
    most = 3
    while not speaks(server := start(tasks, tmp_path, most)):
        more = int(refusal(server[0]).partition("raise it to ")[2].split()[0])
        assert more > most
        most = more
    handles = [nbd.NBD() for _ in range(CLIENT_THREADS)]
    for number, handle in enumerate(handles):
        handle.connect_unix(str(server[1]))
        handle.pwrite(bytes([number]) * 4096, number * 4096)
    assert handles[0].pread(1, 4096) == b"\1"
    threads = len(list(Path(f"/proc/{server[0].pid}/task").iterdir()))
    assert threads == most - 1, "not as many as were counted, with the process that watched the start"
    for handle in handles:
        handle.shutdown()
    server[0].terminate()
    assert server[0].communicate(timeout=60) and server[0].returncode == 0


def speaks(server: "tuple[subprocess.Popen[str], Path]") -> bool:
    """Whether it comes to serve."""
    while server[0].poll() is None:
        if is_answering(server[1].with_name("control")):
            return True
        time.sleep(0.05)
    return False
