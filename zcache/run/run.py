"""`zcache run --limit 2G -- python job.py`: the command.

This process is the keeper of the job's pager, which ends with it. Exit status: the job's; 128 and
the signal's number if that ended it; 2 if it was not started.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from zcache.errors import BadInput, EnvironmentProblem, ZcacheError
from zcache.linux import standard_streams
from zcache.pager import numpy_hook
from zcache.pager.entrance import Entrance
from zcache.pager.keeper import Keeper
from zcache.pager.parameters import PARAMETERS, sorted_out
from zcache.pager.region import Region
from zcache.pager.region_file import LEAST_LIMIT_BYTES
from zcache.pages.entry import PAGE_BYTES
from zcache.run.in_job import VARIABLE
from zcache.run.report import report
from zcache.run.watch import Watch
from zcache.sizes import parse_size

DESCRIPTION: Final = """Run a job whose NumPy arrays may be larger than RAM: at most LIMIT of them are in RAM
uncompressed, and the rest compressed, or in a backing file. The job is any program; what counts is each Python in it
that imports NumPy. At the end it says what the job took, and what memory the limit does not cover."""
#: Signals for the job; and those of a terminal's keys, which it gets by itself.
PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
KEYS: Final = (signal.SIGINT, signal.SIGQUIT)
STARTUP: Final = Path(__file__).resolve().parent / "startup"
DEFAULTS: Final = {"budget": "75%"}
#: Without a backing: arrays may take less than their size, and mostly do.
WITHOUT_BACKING: Final = {"overcommit": "yes"}
#: Of the limit: what arrays may take, unless somebody says it.
TIMES: Final = 8


def words_of(parameters: Mapping[str, str]) -> str:
    """As they are given. (A help's %.)"""
    return " ".join(f"{key}={value}" for key, value in parameters.items()).replace("%", "%%")


class Plan(NamedTuple):
    """What each Python of the job is told (`in_job.py`)."""

    pager: str
    folder: str
    size: int
    limit: int
    threshold: int
    user_mode_only: bool


def main(words: Sequence[str]) -> int:
    """Until the job has ended."""
    arguments, command = _parse(words)
    folder = Path(tempfile.mkdtemp(prefix="zcache-run-"))
    try:
        limit_bytes = parse_size("--limit", arguments.limit) // arguments.processes // PAGE_BYTES * PAGE_BYTES
        if limit_bytes < LEAST_LIMIT_BYTES:
            raise BadInput(
                f"--limit={arguments.limit}: give at least {LEAST_LIMIT_BYTES >> 20}M for each process "
                f"(--processes={arguments.processes})"
            )
        size_bytes = parse_size("--size", arguments.size) if arguments.size else TIMES * limit_bytes
        threshold_bytes = parse_size("--threshold", arguments.threshold, "bytes, of a page and more, such as 1M")
        if size_bytes <= limit_bytes:
            raise BadInput(f"--size={arguments.size}: all of it fits within --limit={arguments.limit}; give more")
        plan = Plan(
            str(folder / "pager"), str(folder), size_bytes, limit_bytes, threshold_bytes, arguments.user_mode_only
        )
        return Run(plan, command, arguments.processes, sorted_out(arguments.parameters)).run()
    except ZcacheError as refusal:
        print(f"zcache run: {refusal}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="zcache run", description=DESCRIPTION, usage="%(prog)s --limit SIZE [options] [key=value …] -- COMMAND …"
    )
    add = parser.add_argument
    add("--limit", required=True, metavar="SIZE", help="of arrays that are in RAM uncompressed: 2G")
    add("--size", metavar="SIZE", help=f"of all arrays together, of a process; default: {TIMES} times its limit")
    add("--threshold", default="1M", metavar="SIZE", help="smaller arrays stay in ordinary memory (%(default)s)")
    add(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="split the limit into N equal shares: each process that imports NumPy takes one, the first one, too",
    )
    add("--user-mode-only", action="store_true", help="take no right to userfaultfd: see zcache/pager/README.md")
    add(
        "parameters",
        nargs="*",
        metavar="key=value",
        help=f"of the store: {', '.join(PARAMETERS)}; backing=PATH: a file that cold pages are spilled to "
        f"(default: {words_of(DEFAULTS)}, and without a backing {words_of(WITHOUT_BACKING)})",
    )
    own, is_there, command = list(words), "--" in words, []
    if is_there:
        own, command = list(words[: words.index("--")]), list(words[words.index("--") + 1 :])
    arguments = parser.parse_args(own)
    if not command:
        parser.error("give the job behind --: zcache run --limit 2G -- python job.py")
    if arguments.processes < 1:
        parser.error("--processes: give at least 1")
    return arguments, command


class Run:
    """A job, its pager and whoever watches them."""

    def __init__(self, plan: Plan, command: Sequence[str], processes: int, parameters: dict[str, str]) -> None:
        self._plan, self._command = plan, command
        parameters = DEFAULTS | ({} if parameters.get("backing") else WITHOUT_BACKING) | parameters
        self._backing = Path(parameters["backing"]) if parameters.get("backing") else None
        self._is_backing_ours = self._backing is not None and not self._backing.exists()
        self._control = Path(parameters.setdefault("control", f"{plan.pager}.control"))
        self._keeper = Keeper(processes * plan.size, parameters, Entrance(Path(plan.pager)))
        self._working = threading.Thread(target=self._work)
        self._keeper.on_serving = self._working.start
        self._job: subprocess.Popen[bytes] | None = None
        self._early = 0  # a signal that came before there was a job
        self._status = 2
        self._refusal: ZcacheError | None = None

    def run(self) -> int:
        """The exit status. Raises what stands against it."""
        for number in (*PASSED_ON, *KEYS):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it for the job
                signal.signal(number, self._pass_on)
        why = self._keeper.run()
        if self._working.ident:
            self._working.join()
        if self._is_backing_ours and self._backing:
            self._backing.unlink(missing_ok=True)
        if self._refusal:
            raise self._refusal
        if why and self._job:
            print(f"zcache run: {why}", file=sys.stderr)
        elif why:
            raise BadInput(why)
        return self._status

    def _pass_on(self, number: int, _frame: Any) -> None:
        """To the job; a terminal's keys are for all of its processes already."""
        if self._job is None:
            self._early = self._early or number
        elif number in PASSED_ON:
            with contextlib.suppress(ProcessLookupError):
                self._job.send_signal(number)

    def _work(self) -> None:
        try:
            numpy_hook.check()
            trial = Region(
                self._plan.size, self._plan.limit, pager=self._plan.pager, user_mode_only=self._plan.user_mode_only
            )
            trial.close()
            while self._keeper.region_count and not self._early:  # its room is the job's
                time.sleep(0.001)
            self._status = self._run_job()
        except ZcacheError as refusal:
            self._refusal = refusal
        finally:
            self._keeper.ask_to_end()

    def _run_job(self) -> int:
        path = [str(STARTUP), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path),
            VARIABLE: json.dumps(self._plan._asdict()),
        }
        if self._early:
            return 128 + self._early
        try:
            self._job = subprocess.Popen(self._command, env=environment, close_fds=False)
        except OSError as error:
            raise EnvironmentProblem(f"{self._command[0]}: {error.strerror}") from None
        if self._early in PASSED_ON:  # it came while the job was started
            self._job.send_signal(self._early)
        watch, ended = Watch(self._job.pid, self._control), threading.Event()
        watching = threading.Thread(target=watch.until, args=(ended,))
        watching.start()
        status = self._job.wait()
        ended.set()
        watching.join()
        watch.look_at_store()
        for line in report(watch, self._plan.limit, Path(self._plan.folder), status):
            print(f"zcache run: {line}", file=sys.stderr, flush=True)
        return status if status >= 0 else 128 - status


if __name__ == "__main__":
    # What was inherited is the job's: environment, open files, limits.
    sys.exit(standard_streams.run("zcache run", lambda: main(sys.argv[1:])))
