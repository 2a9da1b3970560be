"""What the kernel keeps for each process and hands on, as a table: what it is, and how it is put
right.

Most rows ask first whether anything is wrong, so that a sandbox that refuses the call refuses
nothing that is needed. A row raises `OSError` when that cannot be put right.
"""

import contextlib
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from zcache.hardening import limits
from zcache.linux import libc

#: The kernel's own default (init_task), as the shell's first process has it; 0 would mean: as it
#: was inherited.
TIMER_SLACK_NS: Final = 50_000
#: Of the main thread, and of threads whose size nobody says (getrlimit(2)'s default on Linux).
STACK_BYTES: Final = 8 << 20
UMASK: Final = 0o022

#: As many as Linux can be built for; the kernel leaves out those that the cpuset has not.
_MOST_CPUS: Final = 8192
#: Whoever had these ignored (nohup, a shell's `&`) wants us to outlive them.
_STAY_IGNORED: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT})
#: Python ignores these itself, for EPIPE and EFBIG.
_PYTHONS: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
#: One that is pending was sent to end this program.
_ENDING: Final = frozenset({*_STAY_IGNORED, signal.SIGTERM})
_OOM_SCORE_ADJ: Final = Path("/proc/self/oom_score_adj")


class Attribute(NamedTuple):
    """`put_right` returns whether it takes another exec(2) to be so."""

    name: str
    put_right: Callable[[], bool | None]


def put_right(*, is_kept: bool = False) -> tuple[bool, list[str]]:
    """Whether the program has to be run once more, and what could not be put right. In the only
    thread.

    A keeper's server (`is_kept`) keeps the keeper's real-time policy from its first instruction on:
    where server and standby died at once, nobody else gets any of the memory that the keeper lends
    the next one (swap/reserve.py).
    """
    is_once_more = False
    complaints = []
    for attribute in ATTRIBUTES:
        if is_kept and attribute.put_right is _reset_policy:
            continue
        try:
            is_once_more |= bool(attribute.put_right())
        except OSError as error:
            complaints.append(f"{attribute.name} ({error.strerror})")
    return is_once_more, [*complaints, *limits.deadly()]


def _reset_signals() -> None:
    for number in signal.valid_signals() - _PYTHONS:
        if signal.getsignal(number) is signal.SIG_IGN and number not in _STAY_IGNORED:
            with contextlib.suppress(OSError):  # SIGKILL and SIGSTOP
                signal.signal(number, signal.SIG_DFL)
    for number in signal.sigpending() - _ENDING - _PYTHONS:  # or it would end us when it is no longer blocked
        before = signal.signal(number, signal.SIG_IGN)
        signal.signal(number, before)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _lift_limits() -> bool:
    limits.lift()
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if soft == wanted:
        return False
    resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
    return True


def _reset_policy() -> None:
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _reset_nice() -> None:
    if os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def _reset_io_class() -> None:
    if libc.ioprio():
        libc.reset_ioprio()


def _reset_affinity() -> None:
    os.sched_setaffinity(0, range(_MOST_CPUS))


def _reset_memory_policy() -> None:
    if libc.memory_policy():
        libc.reset_memory_policy()


def _reset_timers() -> None:
    for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        if any(signal.getitimer(which)):
            signal.setitimer(which, 0)


def _reset_timer_slack() -> None:
    if libc.prctl(libc.PR_GET_TIMERSLACK, 0) != TIMER_SLACK_NS:
        libc.prctl(libc.PR_SET_TIMERSLACK, TIMER_SLACK_NS)


def _reset_umask() -> None:
    os.umask(UMASK)


def _reset_parents_wishes() -> None:
    libc.prctl(libc.PR_SET_PDEATHSIG, 0)
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 0)


def _reset_memory_switches() -> None:
    with contextlib.suppress(OSError):  # a kernel without memory failures
        libc.prctl(libc.PR_MCE_KILL, libc.PR_MCE_KILL_CLEAR)
    try:
        is_merging = libc.prctl(libc.PR_GET_MEMORY_MERGE, 0)
    except OSError:  # Linux before 6.4, or without KSM
        return
    if is_merging:
        libc.prctl(libc.PR_SET_MEMORY_MERGE, 0)


def _reset_personality() -> bool:
    return libc.reset_personality()


def _reset_oom_score() -> None:
    with contextlib.suppress(FileNotFoundError):  # no /proc
        if int(_OOM_SCORE_ADJ.read_text()) > 0:
            _OOM_SCORE_ADJ.write_text("0")


#: Limits before policy and nice, which are refused without RTPRIO and NICE; the slack after the
#: policy, whose change sets it.
ATTRIBUTES: Final = (
    Attribute("signals", _reset_signals),
    Attribute("limits", _lift_limits),
    Attribute("the scheduling policy", _reset_policy),
    Attribute("the nice value", _reset_nice),
    Attribute("the I/O class", _reset_io_class),
    Attribute("the CPU affinity", _reset_affinity),
    Attribute("the NUMA memory policy", _reset_memory_policy),
    Attribute("interval timers", _reset_timers),
    Attribute("the timer slack", _reset_timer_slack),
    Attribute("the umask", _reset_umask),
    Attribute("the parent-death signal", _reset_parents_wishes),
    Attribute("KSM and memory failures", _reset_memory_switches),
    Attribute("the personality", _reset_personality),
    Attribute("the OOM score", _reset_oom_score),
)
