"""Thread states that are kept (what they are for is measured: zcache/hardening/README.md)."""

import subprocess
import sys

FORK = """
import os
from zcache.hardening.threads import keep_thread, kept_threads

keep_thread()
assert kept_threads() == 1
pid = os.fork()
if not pid:
    # Under another id now. Once, that made the main thread a dead one to those that came after it: they destroyed its
    # state.
    keep_thread()
    os._exit(0 if kept_threads() == 1 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""

#: Threads that Python has not made, as nbdkit's are: each calls in some times, and ends.
FOREIGN = """
import ctypes, gc, threading
from zcache.linux import libc
from zcache.hardening.threads import keep_thread, kept_threads

calls = []

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def serve(_):
    keep_thread()
    calls.append(ctypes.pythonapi.PyGILState_GetThisThreadState())
    return None

start, join = (ctypes.CDLL(None)[name] for name in ("pthread_create", "pthread_join"))
join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]

def run(count):
    threads = []
    for _ in range(4):
        thread = ctypes.c_ulong()
        assert start(ctypes.byref(thread), None, serve, None) == 0
        threads.append(thread)
    for thread in threads:
        assert join(thread, None) == 0

run(4)
before = libc.malloced_bytes()
for _ in range(500):
    run(4)
    calls.clear()
assert kept_threads() == 0, kept_threads()
grown = libc.malloced_bytes() - before
assert grown < 64 << 10, grown
keep_thread()
assert kept_threads() == 1
"""


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_copy_made_by_fork_keeps_the_state_of_its_only_thread() -> None:
    run(FORK)


def test_a_thread_that_ends_takes_its_state_with_it() -> None:
    run(FOREIGN)
