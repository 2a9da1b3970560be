"""The keeper's start: `python -m zcache.keeper FOLDER key=value…`.

All that can fail is tried here, before the swap is on, and what fails is one line and exit status
1: the socket, the control group, the protections, the image and the first server. Then the loop
runs (`keeper.py`). Nobody recognises a keeper by its command line, which older code gave other
names (`zcache.keeper.keeper`, `zcache.swap.keeper`): the state file has its pid and start time, and
its servers are in its session.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zcache.errors import EnvironmentProblem, SwapError
from zcache.hardening import Hardening, limits
from zcache.hardening.log_pipe import say_what_nobody_catches
from zcache.inherited.start import put_right
from zcache.keeper import voice
from zcache.keeper.keeper import Keeper
from zcache.keeper.server_process import listen
from zcache.keeper.state import StateFolder
from zcache.linux import cgroup, libc
from zcache.steps import Steps

#: What it needs of what the server needs: it serves no requests, so its heap and code may fault.
PROTECTIONS: Final = ("io_flusher", "real_time", "small_pages", "memory_lock", "oom_score", "stderr", "shutdown")
#: It goes on where servers' messages end (`log_pipe.MAX_FILE_BYTES`): its own are few, and say what
#: became of them.
LOG_BYTES: Final = 2 << 20


def _hold_secret_memory(folder: StateFolder) -> None:
    """While we have it the kernel does not hibernate (hibernation.py); where there is none swap-up
    says what to do."""
    with contextlib.suppress(OSError, SwapError):
        state = folder.load()
        if not (state and state.may_hibernate):
            libc.memfd_secret()


def main(words: Sequence[str]) -> int:
    """`FOLDER key=value…`: returns when SIGTERM has ended both. Whatever fails on the way to the
    loop is one line."""
    steps = Steps.from_environment()
    say_what_nobody_catches("zcache keeper", steps)
    steps.begin("the keeper makes its socket")
    try:
        keeper, hardening = _start(StateFolder(Path(words[0])), words[1:], steps)
    except BaseException as error:
        voice.say(f"error: {limits.explain(f'the start failed, {steps.name}', error)}")
        return 1
    status = keeper.run()
    hardening.close()
    return status


def _start(folder: StateFolder, parameters: Sequence[str], steps: Steps) -> "tuple[Keeper, Hardening]":
    own_socket = listen(folder.socket)
    steps.begin("the keeper enters its control group")
    problem = cgroup.enter_swapless(folder.cgroup)
    is_required = "hardening=require" in parameters
    if problem and is_required:
        raise EnvironmentProblem(
            f"hardening=require: a server that starts late may be swapped out, to itself: {problem}"
        )
    errors = os.dup(2)  # the server's; ours goes through a pipe that cannot block
    libc.forbid_core_dumps()
    _hold_secret_memory(folder)
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    hardening = Hardening(only=PROTECTIONS, log_bytes=LOG_BYTES, step=lambda name: steps.begin(f"the keeper: {name}"))
    libc.malloc_trim(0)  # what loading modules has left free (0.8 MiB) would be locked with the rest
    hardening.apply()
    try:
        if not hardening.self_check() and is_required:
            raise EnvironmentProblem(hardening.refusal())
        steps.begin("the keeper makes the image and starts the server")
        keeper = Keeper(folder, own_socket, parameters, errors, steps)
        try:
            hardening.start()
        except BaseException:
            keeper.abandon()
            raise
    except BaseException:
        hardening.close()  # gives stderr back, where the reason has to go
        raise
    voice.say(hardening.verdict())
    if problem:
        voice.say(f"WARNING: a server that starts when memory is short may be swapped out, to itself: {problem}")
    return keeper, hardening


def command() -> int:
    """`main`, for the whole of a process, whoever has started it, and wherever."""
    complaint = put_right(sys.argv[1:])
    if complaint:
        voice.say(f"WARNING: {complaint}")
    os.chdir("/")  # no file system is held
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command())
