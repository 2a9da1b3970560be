"""Starts in which one call fails: a server alone, or a keeper with its server and standby.

What a start may come to: it serves, or it ends with one line, and nothing that it made is left.
`trouble` says what else came of it. As a program it tries each call, one after the other:

    python -m tests.support.failing_start alone|kept|succeeded [FIRST [STEP]]
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.failing_calls import Call, Failing, FailingCalls
from tests.support.other_code import python_of
from zcache.image import image
from zcache.image.signs import Signs
from zcache.keeper import launch as keeper_process
from zcache.keeper.state import StateFolder, SwapState
from zcache.linux.process import identify

REPOSITORY: Final = Path(__file__).resolve().parents[2]
#: Any start has come to its end by then, on a busy machine, too; a hang never has. Below the
#: deadline of a step.
DEADLINE_SECONDS: Final = 45.0
KEEPER_SERVER_AND_STANDBY: Final = 3
#: What a start says that has not failed.
_REMARKS: Final = (
    "WARNING: ",
    "safe to swap to itself: ",
    "server number ",
    "no heir: ",
    "starting a standby",
)
#: A netlink message that no kernel knows.
_REFUSED_MESSAGE: Final = (20).to_bytes(4, "little") + b"\xff\x0f" + b"\x05\x00" + bytes(8) + b"\x03\x01\x00\x00"


@dataclass(frozen=True)
class Outcome:
    """Of one start. `status` is None if it served, and ended when it was told to."""

    calls: Sequence[Call]
    failed: Call | None
    status: int | None
    has_hung: bool
    said: str
    left: Sequence[str]

    def complaints(self) -> list[str]:
        """The lines that are no remarks."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        return [line for line in lines if not line.partition("zcache")[2].partition(": ")[2].startswith(_REMARKS)]

    def trouble(self) -> str:
        """What must not be; "" if all is well."""
        found = []
        if self.has_hung:
            found.append("hung")
        if "Traceback" in self.said:
            found.append("a traceback")
        if self.status not in (None, 1):
            found.append(f"status {self.status}")
        if self.status is not None and len(self.complaints()) != 1:
            found.append(f"{len(self.complaints())} lines")
        if self.left:
            found.append(f"left {', '.join(self.left)}")
        return "; ".join(found)


def start_alone(failing: Failing, *, is_held: bool = False, code: Path = REPOSITORY) -> Outcome:
    """`scripts/serve`, whose n-th call fails (0: none), or never ends; of the code in that
    folder."""
    with tempfile.TemporaryDirectory(prefix="zcache-start") as name:
        folder = Path(name)
        command = [sys.executable, "-P", "-m", "nbd_plugin.serve", "-U", str(folder / "socket")]
        command += ["-P", str(folder / "pid"), "size=32M", "budget=16M", f"backing={folder / 'backing'}"]
        command += [f"control={folder / 'control'}"]
        calls = FailingCalls(failing, is_held=is_held)
        return _run(folder, command, calls, code, lambda _: keeper_process.is_answering(folder / "control"))


def start_kept(
    failing: Failing, *, is_held: bool = False, code: Path = REPOSITORY, is_succeeded: bool = False
) -> Outcome:
    """The same of a keeper, as swap-up starts it; it has started when it has a standby, too. Or, to
    be succeeded, when its server has been killed, and the next one has a standby."""
    with tempfile.TemporaryDirectory(prefix="zcache-start") as name:
        folder = Path(name)
        state = StateFolder(folder / "state")
        state.create()
        command = keeper_process.command(state, ["size=32M", "budget=16M", "overcommit=yes"])
        calls = FailingCalls(failing, is_held=is_held)

        killed: list[int] = []

        def has_succeeded(program: "subprocess.Popen[bytes]") -> bool:
            with _image_of(program.pid) as descriptor:  # a successor may have to do without a control socket
                signs = Signs(descriptor)
            if not killed and signs.serves:
                killed.append(signs.pid)
                os.kill(signs.pid, signal.SIGKILL)
            is_succeeded = signs.serves and signs.pid not in killed
            return is_succeeded and len(_session(program.pid)) == KEEPER_SERVER_AND_STANDBY

        def has_started(program: "subprocess.Popen[bytes]") -> bool:
            if state.armed.exists() and is_succeeded:
                return has_succeeded(program)
            if state.reconnection.exists():
                return state.armed.exists() and keeper_process.is_answering(state.control)
            if keeper_process.is_answering(state.control):  # swap-up goes on then
                state.reconnection.write_bytes(_REFUSED_MESSAGE)
            return False

        def prepare(program: "subprocess.Popen[bytes]") -> None:
            identity = identify(program.pid)
            if identity:
                state.save(SwapState(identity))

        try:
            return _run(folder, command, calls, code, has_started, prepare, state.disarm_keeper)
        finally:
            state.remove()  # as swap-up does


def start_succeeded(failing: Failing) -> Outcome:
    """`start_kept`, to be succeeded."""
    return start_kept(failing, is_succeeded=True)


def _run(
    folder: Path,
    command: Sequence[str],
    calls: FailingCalls,
    code: Path,
    has_started: Callable[["subprocess.Popen[bytes]"], bool],
    prepare: Callable[[Any], None] = lambda _: None,
    before_end: Callable[[], None] = lambda: None,
) -> Outcome:
    log = folder / "log"
    with log.open("wb") as output:
        program = calls.start(
            [sys.executable if code == REPOSITORY else python_of(code), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=code,
            start_new_session=True,
        )
    prepare(program)
    has_served, has_hung = _wait(program, has_started)
    before_end()
    if program.poll() is None:
        program.send_signal(signal.SIGTERM)
        try:
            program.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            has_hung = True
    for pid in _session(program.pid):  # servers of a keeper that has ended; itself, if it hangs
        if program.poll() is None or pid != program.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    status = program.wait()
    calls.close()
    left = sorted(path.name for path in folder.iterdir() if path not in (log, folder / "state"))
    if has_served:  # nbdkit leaves its socket and its pid file, and the backing is to be kept
        left = [name for name in left if name not in ("socket", "pid", "backing")]
    return Outcome(
        calls.calls,
        calls.failed,
        None if has_served and status == 0 else status,
        has_hung,
        log.read_text(errors="replace"),
        left,
    )


def _wait(
    program: "subprocess.Popen[bytes]", has_started: Callable[["subprocess.Popen[bytes]"], bool]
) -> tuple[bool, bool]:
    """Whether it has started, and whether it did neither that nor end in time."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while program.poll() is None:
        if has_started(program):
            return True, False
        if time.monotonic() > deadline:
            return False, True
        time.sleep(0.05)
    while _session(program.pid) and time.monotonic() < deadline:  # the guard, which clears away
        time.sleep(0.02)
    return False, bool(_session(program.pid))


@contextlib.contextmanager
def _image_of(pid: int) -> Iterator[int]:
    descriptor = image.of_process(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _session(leader: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(session) == leader and state not in "ZX":
                found.append(int(entry.name))
    return found


def main(arguments: Sequence[str]) -> int:
    """Try all calls; exit status 1 if any start came to something else."""
    start = {"alone": start_alone, "kept": start_kept, "succeeded": start_succeeded}[arguments[0]]
    first, step = (int(word) for word in (*arguments[1:3], *("1", "1")[len(arguments) - 1 :]))
    served = ended = bad = 0
    number = first
    while True:
        begin = time.monotonic()
        outcome = start(number)
        if outcome.failed is None:  # there is no such call any more
            break
        trouble = outcome.trouble()
        served += not trouble and outcome.status is None
        ended += not trouble and outcome.status == 1
        bad += bool(trouble)
        last = outcome.complaints()[-1][:160] if outcome.complaints() else ""
        what = trouble.upper() or ("served" if outcome.status is None else "refused")
        print(f"{number} {outcome.failed} | {what} | {time.monotonic() - begin:.1f} s | {last}", flush=True)
        if trouble:
            print(outcome.said, flush=True)
        number += step
    print(f"{served + ended + bad} calls failed: {served} starts served, {ended} ended with one line, {bad} neither")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
