"""The server that a guest with --host-swap swaps to, outside of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from zcache.errors import EnvironmentProblem
from zcache.testvm import REPOSITORY, say

START_DEADLINE_SECONDS: Final = 30
STOP_DEADLINE_SECONDS: Final = 60
STATUS_DEADLINE_SECONDS: Final = 30


class SwapServer:
    """A running one; its words go to our stderr."""

    def __init__(self, process: subprocess.Popen[bytes], socket_path: Path, control: Path) -> None:
        self.process = process
        self.socket = socket_path
        self.control = control

    def finish(self) -> tuple[dict[str, Any] | None, int]:
        """Its last report and its exit status. QEMU must be gone."""
        status = self._status()
        return status, self.stop()

    def _status(self) -> dict[str, Any] | None:
        argv = [f"{sys.prefix}/bin/zcache", "status", "--json", "--control", str(self.control)]
        try:
            report = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=STATUS_DEADLINE_SECONDS,
                check=True,
            )
            status: dict[str, Any] = json.loads(report.stdout)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            say(f"no status from the swap server: {error}")
            return None
        return status

    def stop(self) -> int:
        """SIGTERM to the group's head only: a server may have helpers that know better when to
        go."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            say(f"the swap server is still there {STOP_DEADLINE_SECONDS} s after SIGTERM: killing it")
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()


def serve_command(socket_path: Path, words: list[str]) -> list[str]:
    return [str(REPOSITORY / "scripts/serve"), "--exit-with-parent", "-U", str(socket_path), *words]


@contextmanager
def swap_server(words: tuple[str, ...], work: Path) -> Iterator[SwapServer]:
    """A server that accepts connections; stopped at the end if it was not finished."""
    socket_path = work / "nbd"
    given = [word.removeprefix("control=") for word in words if word.startswith("control=")]
    control = Path(given[-1]) if given else work / "control"
    words_with_control = [*words] if given else [*words, f"control={control}"]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *serve_command(socket_path, words_with_control)],
        stdin=subprocess.DEVNULL,
        stdout=2,
        start_new_session=True,
    )
    server = SwapServer(process, socket_path, control)
    try:
        _await_server(process, socket_path)
        yield server
    finally:
        if process.poll() is None:
            server.stop()


def _await_server(process: subprocess.Popen[bytes], socket_path: Path) -> None:
    """nbdinfo, not a bare connect: a connection without a handshake is an error in the server's
    log."""
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EnvironmentProblem(f"the swap server ended at its start, with status {process.returncode}")
        if socket_path.exists():
            argv = ["nbdinfo", "--size", f"nbd+unix:///?socket={socket_path}"]
            with suppress(subprocess.TimeoutExpired):
                if subprocess.run(argv, capture_output=True, timeout=5, check=False).returncode == 0:
                    return
        time.sleep(0.1)
    raise EnvironmentProblem(f"the swap server accepts no connection after {START_DEADLINE_SECONDS} s")
