"""What is left to a process, and to its threads, that has given up its privileges."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from zcache.linux import landlock

REPOSITORY = Path(__file__).resolve().parents[3]

PROGRAM = """
import os, subprocess, sys, threading
from pathlib import Path
from zcache.hardening import privileges

folder = Path(sys.argv[1])
kept_open = os.open(folder / "open", os.O_RDWR | os.O_CREAT)
control = folder / "run" / "control"
control.parent.mkdir()
control.touch()
assert not privileges.are_given_up()
privileges.give_up(control)
assert privileges.are_given_up()

def is_refused(action):
    try:
        action()
    except PermissionError:
        return True
    return False

def look():
    assert is_refused(lambda: (folder / "new").touch())
    assert is_refused(lambda: (folder / "open").read_bytes())
    assert is_refused(lambda: (folder / "open").unlink())
    assert is_refused(lambda: (control.parent / "folder").mkdir())
    assert is_refused(lambda: control.write_text("x"))
    assert is_refused(lambda: control.rename(folder / "other"))
    assert is_refused(lambda: Path("/etc/passwd").read_text())
    assert is_refused(lambda: subprocess.run(["/bin/true"]))
    assert is_refused(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
    assert is_refused(lambda: os.chroot("/"))
    os.pwrite(kept_open, b"still open", 0)
    assert Path(privileges.__file__).read_text() and Path("/proc/self/smaps_rollup").read_text()
    assert Path("/proc/self/oom_score_adj").read_text() and list(Path("/proc/self/fd").iterdir())
    control.unlink()
    print("as it should be")

thread = threading.Thread(target=look)
thread.start()
thread.join()
"""


#: What of TCP and of a Unix socket is left, in one line.
NETWORK_PROGRAM = """
import json, socket, sys
from pathlib import Path
from zcache.hardening import privileges

control, unix, first, second, arguments = sys.argv[1:]
privileges.give_up(Path(control), **json.loads(arguments))

def is_left(family, action):
    with socket.socket(family) as end:
        try:
            action(end)
        except PermissionError:
            return "no"
        return "yes"

print(
    "first", is_left(socket.AF_INET, lambda end: end.connect(("127.0.0.1", int(first)))),
    "second", is_left(socket.AF_INET, lambda end: end.connect(("127.0.0.1", int(second)))),
    "bind", is_left(socket.AF_INET, lambda end: end.bind(("127.0.0.1", 0))),
    "unix", is_left(socket.AF_UNIX, lambda end: end.connect(unix)),
)
"""


def run(program: str, arguments: Sequence[str]) -> str:
    """In a process of its own: what has been given up does not come back."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.strip()


def test_nothing_is_left_but_what_serving_takes(tmp_path: Path) -> None:
    assert run(PROGRAM, [str(tmp_path)]) == "as it should be"


@pytest.mark.parametrize(
    ("allowed", "left"),
    [
        ("{}", "first no second no bind no unix yes"),
        ('{"connect_ports": [FIRST]}', "first yes second no bind no unix yes"),
        ('{"connect_ports": [FIRST, SECOND]}', "first yes second yes bind no unix yes"),
        ('{"connect_anywhere": true}', "first yes second yes bind no unix yes"),
        ('{"connect_anywhere": true, "connect_ports": [FIRST]}', "first yes second yes bind no unix yes"),
    ],
    ids=["none", "one port", "two ports", "anywhere", "anywhere and a port"],
)
def test_tcp_connects_to_the_ports_that_are_kept_and_binds_none(allowed: str, left: str, tmp_path: Path) -> None:
    version = landlock_version()
    if version < 4:
        pytest.skip(f"the kernel's Landlock knows no ports: version {version}, and it takes 4")
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(tmp_path / "unix"))
        unix.listen()
        ports = [str(listener.getsockname()[1]) for listener in (first, second)]
        allowed = allowed.replace("FIRST", ports[0]).replace("SECOND", ports[1])
        assert run(NETWORK_PROGRAM, [str(tmp_path / "control"), str(tmp_path / "unix"), *ports, allowed]) == left


def landlock_version() -> int:
    """0 without any."""
    try:
        return landlock.version()
    except OSError:
        return 0
