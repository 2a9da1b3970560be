"""Thread states that are kept (what they are for is measured: ARCHITECTURE.md, "Ablation")."""

import subprocess
import sys

FORK = """
import os
from zcache.hardening.threads import keep_thread, kept_threads

keep_thread()
assert kept_threads() == 1
pid = os.fork()
if not pid:
    # Under another id now, the main thread was a dead one to those that came after it: they destroyed its state.
    os._exit(kept_threads())
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def test_a_copy_made_by_fork_keeps_the_state_of_its_only_thread() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
