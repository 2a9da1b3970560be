"""What is left to a process, and to its threads, that has given up its privileges."""

import os
import subprocess
import sys
from pathlib import Path

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


def test_nothing_is_left_but_what_serving_takes(tmp_path: Path) -> None:
    """In a process of its own: what has been given up does not come back."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "as it should be\n", done.stderr
