"""The guest's half of scripts/pressure: cell after cell, each with a swap area of its own, each
reported as it ends.

Called as `python -m zcache.bench.pressure.guest FOLDER`; the folder is shared with the host and
holds `job.json`. For each load: a line in the kernel log that says so, then LOAD.json. A cell
without a report is one that the guest did not live through.

In a guest whose swap is on the host it is already on, and `/proc/swaps` names it; else swap-up and
swap-down are run, as a user would. This process is an ordinary one: it may be swapped out, and
killed when memory runs out.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from zcache.bench.pressure.loads import LOADS, Guest, Load, program_words
from zcache.control.ask import ask
from zcache.errors import ZcacheError
from zcache.keeper.state import StateFolder
from zcache.testvm.figures import page_faults, read_meminfo_kib, read_vmstat
from zcache.testvm.guest import GuestError, swap_off, swap_on

#: For turning a swap area on or off: 20 s on an idle host, and ten times that on one with much else
#: to do.
SWAP_SECONDS: Final = 300
START_SECONDS: Final = 240
#: Beyond the seconds asked for: filling memory larger than RAM comes first.
LOAD_SECONDS: Final = 300
END_SECONDS: Final = 60


class CellError(Exception):
    """Why a cell could not be run to its end: one line."""


def main(folder: Path) -> int:
    """Exit status 0 when all cells were gone through, whatever came of them."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    device = None if job["parameters"] else Path(Path("/proc/swaps").read_text().splitlines()[1].split()[0])
    if device:
        swap_off(device)
    for name in job["loads"]:
        _tell_the_kernel_log(f"cell {name}")
        report: dict[str, Any] = {}
        try:
            with _swap(device, job["parameters"], report):
                run_cell(name, job, report)
        except (CellError, GuestError, ZcacheError) as error:
            report["error"] = str(error)
        staged = folder / f"{name}.json.new"
        staged.write_text(json.dumps(report))
        staged.replace(folder / f"{name}.json")
        if "error" in report:
            return 1  # whatever is left of it would be in the way of the next one
    return 0


def run_cell(name: str, job: dict[str, Any], report: dict[str, Any]) -> None:
    """Run one load with the swap on, and look at everything before it is taken off."""
    available_mib = read_meminfo_kib()["MemAvailable"] >> 10
    guest = Guest(job["memory_mib"], available_mib, job["budget_mib"], job["files"], job["seconds"])
    report |= {"available_mib": available_mib, "load_mib": guest.load_mib}
    control = StateFolder().control if job["parameters"] else None
    server_pid: int = ask(control, "status")["pid"] if control else 0
    faults = page_faults(server_pid) if server_pid else 0
    before = read_vmstat()
    begin = time.monotonic()
    with _Ticker() as ticker:
        report["programs"] = _run(LOADS[name](guest), guest.seconds + LOAD_SECONDS)
        report["load_seconds"] = round(time.monotonic() - begin, 1)
    report["longest_gap_seconds"] = ticker.longest_gap_seconds
    after = read_vmstat()
    for figure, field in (("pages_out", "pswpout"), ("pages_in", "pswpin"), ("oom_kills", "oom_kill")):
        report[figure] = after[field] - before[field]
    if control:
        report["status"] = ask(control, "status")
        report["check"] = ask(control, "check")
        report["server_replaced"] = report["status"]["pid"] != server_pid
        if not report["server_replaced"]:
            report["server_page_faults"] = page_faults(server_pid) - faults


@contextlib.contextmanager
def _swap(device: Path | None, parameters: list[str], report: dict[str, Any]) -> Iterator[None]:
    """Swap for the length of a cell; how long it took to turn it off again goes to the report."""
    with ExitStack() as undo:
        if device:
            swap_on(device, undo)
        else:
            _command("zcache.swap.up", "--start-seconds", str(START_SECONDS), *parameters)
            undo.callback(_command, "zcache.swap.down")
        yield
        begin = time.monotonic()
    report["swap_off_seconds"] = round(time.monotonic() - begin, 1)


def _command(module: str, *words: str) -> None:
    arguments = [sys.executable, "-P", "-m", module, *words]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=SWAP_SECONDS, check=False)
    except subprocess.TimeoutExpired as late:
        raise CellError(f"{module}: no end after {SWAP_SECONDS} s; it said: {late.stdout!r}") from None
    if done.returncode:
        raise CellError(f"{module} ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")


def _run(load: Load, deadline_seconds: float) -> list[dict[str, Any]]:
    """Exit status and last words of the load's programs, the foreground one first."""
    shutil.rmtree("/tmp/build", ignore_errors=True)
    deadline = time.monotonic() + deadline_seconds
    background = _Program(load.background, Path("/tmp/background")) if load.background else None
    results = [_Program(load.foreground, Path("/tmp/foreground")).end(deadline)]
    if background:
        background.process.send_signal(signal.SIGTERM)
        results.append(background.end(time.monotonic() + END_SECONDS))
    return results


class _Program:
    """One program of a load, from its start on; its output is in a file."""

    def __init__(self, words: list[str], output: Path) -> None:
        self._words = words
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)

    def end(self, deadline: float) -> dict[str, Any]:
        """Its exit status, None if it had to be killed; what it said, and the figures in that."""
        status: int | None
        standing: dict[str, str] = {}
        try:
            status = self.process.wait(deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            status, standing = None, {"standing": standing_of_session(self.process.pid)}
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        said = self._output.read_text(errors="replace").strip()
        figures = json.loads(said.splitlines()[-1]) if said.endswith("}") else {}
        return {"command": self._words, "exit_status": status, "said": said[-2000:], **figures, **standing}


def standing_of_session(session: int) -> str:
    """Where each thread of a session is, twice, a second apart.

    A line each: process/thread, state, CPU ticks used, what it waits for in the kernel, (system
    call), command.
    """
    lines: list[str] = []
    for _ in range(2):
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                lines += _standing_of_process(process, session) if process.name.isdigit() else ()
        time.sleep(1)
    return "\n".join(lines)


def _standing_of_process(process: Path, session: int) -> Iterator[str]:
    words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    for thread in sorted((process / "task").iterdir()):
        fields = (thread / "stat").read_text().rpartition(")")[2].split()
        if int(fields[3]) == session:
            waits, call = ((thread / name).read_text().strip() for name in ("wchan", "syscall"))
            ticks = int(fields[11]) + int(fields[12])
            yield f"{process.name}/{thread.name} {fields[0]} {ticks} {waits} ({call}) {words[:100]}"


class _Ticker:
    """ticker.py for the length of a block, and then what it found."""

    longest_gap_seconds: float | None = None

    def __enter__(self) -> "_Ticker":
        self._process = subprocess.Popen(program_words("ticker"), stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        output = self._process.communicate(timeout=END_SECONDS)[0]
        if self._process.returncode == 0:
            self.longest_gap_seconds = float(output)


def _tell_the_kernel_log(line: str) -> None:
    Path("/dev/kmsg").write_text(f"zcache pressure: {line}\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
