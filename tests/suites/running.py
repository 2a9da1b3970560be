"""One test of a suite: a command that is run with a deadline, and what its outcome says about
zcache."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from tests.suites import serving
from zcache.errors import EnvironmentProblem
from zcache.testvm import REPOSITORY

#: The longest of them takes half a minute; no end after that is a failure.
SECONDS: Final = 180
#: For its servers, when it has ended.
_END_SECONDS: Final = 10
#: What a test says that cannot run here (automake's convention).
SKIPPED: Final = 77


#: Some scripts wait a second for their server. On a busy machine it takes longer to start, Python
#: that it is; so a script's `sleep` waits until every stand-in that was started has its socket.
_SLEEP: Final = f"""/usr/bin/sleep "$@"
n=0
for mark in "${serving.FOLDER}/{serving.STARTING}"*; do
    while [ -e "$mark" ] && kill -0 "${{mark##*-}}" 2>/dev/null && [ $n -lt 300 ]; do
        /usr/bin/sleep 0.1
        n=$((n + 1))
    done
done"""


class Verdict(Enum):
    """Of a test."""

    PASSED = "passed"
    FAILED = "failed"
    LEFT_OUT = "left out"


class Run(NamedTuple):
    """How a command ended: its exit status (None: it did not), and where its output is."""

    status: int | None
    log: Path
    folder: Path

    @property
    def output(self) -> str:
        """All that it printed."""
        return self.log.read_text(errors="replace")


class Reading(NamedTuple):
    """What an exit status and output mean, by a suite's own conventions."""

    verdict: Verdict
    why: str


class Result(NamedTuple):
    """What a test said about zcache."""

    name: str
    verdict: Verdict
    why: str


def read_automake(run: Run) -> Reading:
    """0, 77, or anything else."""
    last = next((line.strip() for line in reversed(run.output.splitlines()) if _tells(line)), "no message")
    if run.status == SKIPPED:
        return Reading(Verdict.LEFT_OUT, f"skips itself: {last}")
    if run.status is None:
        return Reading(Verdict.FAILED, f"no end after {SECONDS} s")
    return Reading(Verdict.FAILED if run.status else Verdict.PASSED, f"exit status {run.status}: {last}")


def _tells(line: str) -> bool:
    """Not what bash traces, nor what follows the reason in every script of libnbd and nbdkit."""
    routine = ("run cleanup hooks", "prerequisite is missing")
    return any(map(str.isalnum, line)) and not line.startswith("+") and not any(map(line.__contains__, routine))


class Case(NamedTuple):
    """A test: a command in a folder; `read` is how its suite reads an outcome."""

    name: str
    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = {}
    read: Callable[[Run], Reading] = read_automake


class Runner:
    """Runs cases with the stand-ins first on their path. What they print goes below `work`."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._stand_ins = work / "stand-ins"
        self._stand_ins.mkdir(parents=True)
        self.stand_in(self._stand_ins / "nbdkit", "stand_in_nbdkit")
        _write_program(self._stand_ins / "sleep", _SLEEP)

    @staticmethod
    def stand_in(path: Path, module: str) -> None:
        """A program that is one of ours."""
        code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from tests.suites.{module} import main; main()"
        python = shlex.join([sys.executable, "-P", "-c", code])
        _write_program(path, f': >"${serving.FOLDER}/{serving.STARTING}$$"\nexec {python} "$@"')

    def judge(self, case: Case, excluded: Mapping[str, str]) -> Result:
        """Runs a case against zcache, and if it does not pass against the server that it was
        written for."""
        if case.name in excluded:
            return Result(case.name, Verdict.LEFT_OUT, excluded[case.name])
        ours = self.run(case, serving.ZCACHE)
        found = case.read(ours)
        if found.verdict is Verdict.PASSED and not serving.served(ours.folder):
            why = "; ".join(dict.fromkeys(serving.remarks(ours.folder))) or "no writable disk of a fixed size"
            return Result(case.name, Verdict.LEFT_OUT, f"wants what zcache is not: {why}")
        if found.verdict is Verdict.LEFT_OUT and not serving.served(ours.folder):
            return Result(case.name, found.verdict, found.why)
        if found.verdict is not Verdict.PASSED:
            theirs = case.read(self.run(case, serving.PLAIN))
            if theirs.verdict is Verdict.LEFT_OUT:
                return Result(case.name, Verdict.LEFT_OUT, theirs.why)
            if theirs.verdict is Verdict.FAILED:
                return Result(case.name, Verdict.LEFT_OUT, f"fails with its own server, too: {theirs.why}")
            return Result(case.name, Verdict.FAILED, f"{found.why}; {ours.log}")
        return Result(case.name, found.verdict, found.why)

    def can_fail(self, case: Case) -> bool:
        """Whether a case fails with a server that returns wrong bytes."""
        run = self.run(case, serving.LYING)
        return serving.served(run.folder) and case.read(run).verdict is Verdict.FAILED

    def run(self, case: Case, server: str) -> Run:
        """Once, with that server. Whatever it leaves running is ended."""
        folder = self.work / f"{case.name.replace('/', '-')}.{server}"
        folder.mkdir()
        log = folder / "output"
        environment = {
            **os.environ,
            **case.environment,
            "LANG": "C.UTF-8",
            "PATH": f"{self._stand_ins}:{serving.OWN_PATH}",
            serving.SERVER: server,
            serving.FOLDER: str(folder),
        }
        others = descendants()
        with log.open("wb") as output:
            process = subprocess.Popen(
                case.command, cwd=case.folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            try:
                status = _wait(process)
            finally:
                end_all_but(others)
                process.wait()
        for left in folder.glob("backing-*"):
            left.unlink()
        return Run(status, log, folder)


def _write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """Its exit status; None: it has not ended in time. What it has left to us, and has ended, is
    cleared away, for the scripts look whether a server is still there by its pid."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                if child.pid != process.pid and child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)
        time.sleep(0.05)
    return process.returncode


def descendants() -> set[psutil.Process]:
    """Everything that this process has started, and what that has (it is the reaper of all of
    them)."""
    return set(psutil.Process().children(recursive=True))


def end_all_but(others: set[psutil.Process]) -> None:
    """All descendants that are not these."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        left = descendants() - others
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        psutil.wait_procs(left, timeout=_END_SECONDS)


def require(programs: Mapping[str, str]) -> None:
    """Raises `EnvironmentProblem` for programs that are missing, with the packages that have
    them."""
    missing = sorted({package for program, package in programs.items() if not shutil.which(program)})
    if missing:
        raise EnvironmentProblem(f"not installed: {' '.join(missing)}; run scripts/setup suites")
