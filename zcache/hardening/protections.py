"""The protections, in the order in which they are applied, and the self-check that reads each back.

Everything is applied in `after_fork`, while the process has one thread: IO_FLUSHER is inherited by
threads made later, memory locks do not survive a fork, and malloc's arenas are handed out to
threads. Each protection says what it is against; what happened without most of them is in
README.md ("Ablation") here.
"""

import contextlib
import os
import resource
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, NamedTuple

from zcache.errors import EnvironmentProblem
from zcache.hardening import heap, log_pipe, privileges, program
from zcache.hardening.threads import REAL_TIME_PRIORITY
from zcache.linux import libc, memory

OOM_SCORE_ADJ: Final = Path("/proc/self/oom_score_adj")
MIN_OOM_SCORE_ADJ: Final = -1000
PREFAULT: Final = "prefault"

#: Field 48 of /proc/PID/stat, counted from behind the name.
_ARG_START: Final = 45

#: Not among the protections: it is against whoever takes the server over, and comes after the
#: self-check.
LEAST_PRIVILEGE: Final = "least_privilege"


class Protection(NamedTuple):
    """One protection: `apply` may raise `OSError`; `holds` asks the kernel (or libc) and not our
    memory of having asked for it."""

    name: str
    remedy: str  # what to do about it where it does not hold
    apply: Callable[[], None]
    holds: Callable[[], bool]


class Hardening:
    """All protections of this process: `apply`, warm up, `prefault`, `self_check`,
    `give_up_privileges`, `start`; then `close` at the end.

    Those named in `without` are left out, which the self-check will hold against us; a process that
    needs no others than `only` has those alone.
    """

    def __init__(
        self,
        without: Collection[str] = (),
        only: Collection[str] = (),
        log_bytes: int = log_pipe.MAX_FILE_BYTES,
        step: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`step` is told of each before it is applied."""
        self.results: dict[str, bool] = {}  # name to whether it holds, once `self_check` has run
        self._privileges = ""  # what became of them
        self._log_pipe: log_pipe.LogPipe | None = None
        self._log_bytes = log_bytes
        self._step = step
        self._without = without
        self._protections = [
            Protection("io_flusher", "needs CAP_SYS_RESOURCE", _set_io_flusher, _is_io_flusher),
            Protection("real_time", "needs CAP_SYS_NICE", _go_real_time, _is_real_time),
            Protection("small_pages", "a bug", _refuse_huge_pages, _has_small_pages),
            Protection(
                "heap", "needs glibc, and PYTHONMALLOC=malloc in the environment", heap.fix_heap, heap.heap_is_fixed
            ),
            Protection("memory_lock", "needs CAP_IPC_LOCK or a memlock limit beyond the budget", _lock, _is_locked),
            Protection("program", "needs Linux 5.14", program.populate_program, program.is_populated),
            Protection("oom_score", "needs CAP_SYS_RESOURCE", _set_oom_score, _is_oom_exempt),
            Protection("stderr", "a bug", self._divert_stderr, lambda: log_pipe.is_log_pipe(2)),
            Protection("shutdown", "a bug", _mark_as_storage_daemon, _is_storage_daemon),
        ]
        if only:
            self._protections = [protection for protection in self._protections if protection.name in only]
        self._remedies = {protection.name: protection.remedy for protection in self._protections}
        known = (*self._remedies, PREFAULT, LEAST_PRIVILEGE)
        unknown = ", ".join(sorted(set(without) - set(known)))
        if unknown:
            raise EnvironmentProblem(f"no protection is called {unknown}; there are {', '.join(known)}")

    def apply(self) -> None:
        """Apply each; what fails will show in the self-check."""
        for protection in self._protections:
            self._apply(protection)

    def prefault(self, populate: Callable[[], None], is_populated: Callable[[], bool]) -> None:
        """Fault in all memory that the I/O path will touch, once there is any; the last
        protection."""
        protection = Protection(PREFAULT, "needs Linux 5.14 and free memory for the budget", populate, is_populated)
        self._protections.append(protection)
        self._remedies[PREFAULT] = protection.remedy
        self._apply(protection)

    def _apply(self, protection: Protection) -> None:
        if protection.name in self._without:
            self._remedies[protection.name] = "left out on request"
            return
        self._step(f"applying the protection {protection.name}")
        try:
            protection.apply()
        except OSError as error:
            self._remedies[protection.name] = f"{protection.remedy}: {error.strerror}"

    def self_check(self) -> bool:
        """Ask the kernel about each; whether all hold."""
        for protection in self._protections:
            try:
                self.results[protection.name] = protection.holds()
            except OSError:
                self.results[protection.name] = False
        return all(self.results.values())

    def give_up_privileges(
        self,
        control: Path | None,
        temporary: Path | None = None,
        read_later: Path | None = None,
        connect_ports: Collection[int] = (),
        connect_anywhere: bool = False,
    ) -> None:
        """In the process's only thread, and when nothing can be refused any more: what was made by
        then could not be removed, but for the socket at `control` and a temporary folder; nor any
        file opened, but for one to be `read_later`; nor TCP connected, but to `connect_ports` (or
        anywhere). The outcome is `results["least_privilege"]`."""
        if LEAST_PRIVILEGE in self._without:
            self._privileges = "NOT given up on request"
        else:
            try:
                privileges.give_up(control, temporary, read_later, connect_ports, connect_anywhere)
                self._privileges = "given up" if privileges.are_all_given_up() else "given up but for CAP_IPC_LOCK"
            except OSError as error:
                self._privileges = f"given up, but files are NOT out of reach: needs Landlock: {error.strerror}"
        self.results[LEAST_PRIVILEGE] = privileges.are_given_up()

    def verdict(self) -> str:
        """The self-check in one line."""
        results = {name: self.results[name] for name in self._remedies}
        holding = ", ".join(name for name, holds in results.items() if holds) or "nothing"
        failing = ", ".join(f"{name} ({self._remedies[name]})" for name, holds in results.items() if not holds)
        rest = f"; privileges {self._privileges}" if self._privileges else ""
        if not failing:
            return f"safe to swap to itself: {holding}; {resident_and_locked_bytes()[1] >> 20} MiB locked{rest}"
        return f"WARNING: NOT safe to swap to itself: without {failing}; has {holding}{rest}"

    def refusal(self) -> str:
        """The verdict where one is `require`d and it is not good."""
        return f"hardening=require: {self.verdict().removeprefix('WARNING: ')}; give what is missing, or hardening=warn"

    def lock_again(self) -> None:
        """In a copy of this process: fork(2) leaves locks behind, and with them all that is mapped
        from files; and it shares the pipe that stderr is."""
        if self._log_pipe:
            self._log_pipe.renew()
        with contextlib.suppress(OSError):
            heap.give_back_free_memory()
        with contextlib.suppress(OSError):  # as it was for the original
            if "memory_lock" not in self._without:
                _lock()
            program.map_program()

    def start(self) -> None:
        """Start what needs a thread; after everything else."""
        if self._log_pipe:
            self._log_pipe.start()

    def close(self) -> None:
        """Give stderr back."""
        if self._log_pipe:
            self._log_pipe.close()

    def _divert_stderr(self) -> None:
        self._log_pipe = log_pipe.LogPipe(self._log_bytes)


def resident_and_locked_bytes() -> tuple[int, int]:
    """This process's RSS, and what of it is locked, whoever shares it. Takes the kernel a
    millisecond for each 100 MiB.

    (`VmLck` also counts what was never touched; `Locked` in smaps counts what is shared with the
    keeper by halves.)
    """
    resident_kib = locked_kib = mapping_kib = 0
    with Path("/proc/self/smaps").open() as lines:
        for line in lines:
            if line.startswith("Rss:"):
                mapping_kib = int(line.split()[1])
                resident_kib += mapping_kib
            elif line.startswith("VmFlags:") and " lo" in line:
                locked_kib += mapping_kib
    return resident_kib << 10, locked_kib << 10


def _set_io_flusher() -> None:
    """Our allocations do no I/O to reclaim memory (they would wait for ourselves), and we are not
    throttled as a writer."""
    libc.prctl(libc.PR_SET_IO_FLUSHER, 1)


def _is_io_flusher() -> bool:
    return libc.prctl(libc.PR_GET_IO_FLUSHER, 0) == 1


def _go_real_time() -> None:
    """The page allocator lets a real-time task dip into the reserve below the min watermark, where
    a worker finds the socket buffer for its reply when nobody else finds anything. The lowest
    priority: it is not for speed."""
    with contextlib.suppress(ValueError, OSError):  # for `without_real_time`, once there are no privileges
        resource.setrlimit(resource.RLIMIT_RTPRIO, (REAL_TIME_PRIORITY, REAL_TIME_PRIORITY))
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))


def _is_real_time() -> bool:
    return os.sched_getscheduler(0) == os.SCHED_RR


def _refuse_huge_pages() -> None:
    """Where huge pages are on for all, touching one byte of a sparse table would lock 2 MiB (20 MiB
    more for a budget of 160), and khugepaged would hold our address space while it looks for
    memory."""
    libc.prctl(libc.PR_SET_THP_DISABLE, 1)


def _has_small_pages() -> bool:
    return libc.prctl(libc.PR_GET_THP_DISABLE, 0) == 1


def _lock() -> None:
    """Nothing that we touched is ever swapped out or, if it is code, dropped. On fault: nbdkit's
    192 MiB of BSS stay untouched."""
    program.drop_what_the_start_left()
    libc.mlockall(libc.MCL_CURRENT | libc.MCL_FUTURE | libc.MCL_ONFAULT)


def _is_locked() -> bool:
    resident, locked = resident_and_locked_bytes()
    return locked > resident * 9 // 10  # the kernel's own vdso is never locked


def _set_oom_score() -> None:
    """Killing us frees less than it destroys: everything that is swapped out."""
    OOM_SCORE_ADJ.write_text(str(MIN_OOM_SCORE_ADJ))


def _mark_as_storage_daemon() -> None:
    """At shutdown systemd kills every process that is left, and only then takes swap off; but none
    of root's whose command line begins with an @ (systemd's "Root Storage Daemons")."""
    with Path("/proc/self/stat").open() as stat:
        arg_start = int(stat.read().rpartition(")")[2].split()[_ARG_START])
    memory.write_byte(arg_start, ord("@"))


def _is_storage_daemon() -> bool:
    return Path("/proc/self/cmdline").read_bytes().startswith(b"@")


def _is_oom_exempt() -> bool:
    return int(OOM_SCORE_ADJ.read_text()) == MIN_OOM_SCORE_ADJ
