"""Work done in a process of its own, for what the work loads: that goes with the process.

pyroute2 is some 15 MiB of private memory. In a guest of 256 MiB, with a server locked in half of
what the kernel has, a swap-up that still held them at swapon was killed for memory (seen).
"""

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

from zcache.errors import SwapError
from zcache.swap.interruption import SIGNALS

_Result = TypeVar("_Result")


def apart(work: Callable[[], _Result], announce: Callable[[int], None] = lambda _pid: None) -> _Result:
    """What `work` returns, from a fork, or as a `SwapError` what it raises; the result must be one
    that pickles.

    `announce` is told the child's pid before the work begins. When we are killed before that, it
    never begins; after it, the child ends the work, and holds what locks we held (flock) until
    then.
    """
    go_reader, go = os.pipe()
    results, result_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        _child(work, go_reader, result_writer)
    os.close(go_reader)
    os.close(result_writer)
    with os.fdopen(results, "rb") as answers:
        try:
            with os.fdopen(go, "wb") as word:
                announce(pid)
                word.write(b"go")
            answer = answers.read()
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(pid, 0)
    if status:
        raise SwapError(f"a process of ours ended with {os.waitstatus_to_exitcode(status)}")
    result: _Result
    result, complaint = pickle.loads(answer)  # noqa: S301 (a child's of ours)
    if complaint is not None:
        raise SwapError(complaint)
    return result


def _child(work: Callable[[], _Result], go_reader: int, result_writer: int) -> NoReturn:
    """Leaves the parent's buffers and locks alone. Ctrl-C is for the parent, which decides what
    becomes of us."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    status = 1
    try:
        if os.read(go_reader, 2):
            try:
                answer: tuple[_Result | None, str | None] = (work(), None)
            except (SwapError, OSError) as error:
                answer = (None, str(error))
            with os.fdopen(result_writer, "wb") as results:
                pickle.dump(answer, results)
            status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)
