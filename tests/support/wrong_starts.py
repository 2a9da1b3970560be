"""Starts of a program by somebody with settings of his own, one wrong thing at a time, or all at
once; as a program:

    python tests/support/wrong_starts.py WRONG,… COMMAND…

And what a process is like, as far as /proc says it: `look`. Of the standard library alone: it runs
in any folder.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_IS_ARM: Final = os.uname().machine == "aarch64"
_IOPRIO_GET, _IOPRIO_SET, _SET_MEMPOLICY = (31, 30, 237) if _IS_ARM else (252, 251, 238)
_IDLE_CLASS: Final = 3 << 13
_MPOL_BIND: Final = 2
_ADDR_NO_RANDOMIZE: Final = 0x0040000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_TIMERSLACK: Final = 29
_PR_MCE_KILL: Final = 33
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_MEMORY_MERGE: Final = 67
_PR_GET_MEMORY_MERGE: Final = 68

#: Seconds that an interval timer gives a program that does not reset it.
_TIMER_SECONDS: Final = 2.0


def _block_all() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _ignore_all() -> None:
    """But for those by which a shell has a program outlive it."""
    for number in signal.valid_signals() - {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT}:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN)


def _leave_pending() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGALRM, signal.SIGRTMIN])
    for number in (signal.SIGUSR1, signal.SIGALRM, signal.SIGRTMIN):
        os.kill(os.getpid(), number)


def _limit(number: int, value: int) -> Callable[[], None]:
    def apply() -> None:
        _, hard = resource.getrlimit(number)
        wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (wanted, hard))

    return apply


def _variable(name: str, value: str) -> Callable[[], None]:
    def apply() -> None:
        os.environ[name] = value

    return apply


def _shadow_modules() -> None:
    folder = Path(tempfile.gettempdir()) / f"zcache-shadow-{os.geteuid()}"  # one, for nobody is left to remove it
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in ("resource", "lz4", "struct", "argparse"):
        (folder / f"{name}.py").write_text("raise SystemExit('a stranger runs')\n")
    os.environ["PYTHONPATH"] = str(folder)


def _open_files() -> None:
    source = os.open("/dev/null", os.O_RDONLY)
    for number in {3, 4, 50, 77} - {source}:
        os.dup2(source, number)
    os.set_inheritable(source, True)


def _listen_for_another() -> None:
    """As the child of a service that systemd gave a socket."""
    _open_files()
    os.environ |= {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getppid())}


def _stand_in_a_removed_folder() -> None:
    folder = tempfile.mkdtemp(prefix="zcache-gone")
    os.chdir(folder)
    Path(folder).rmdir()


def _empty_environment() -> None:
    os.environ.clear()
    os.environ["PATH"] = os.defpath


def _have_a_timer() -> None:
    for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(which, _TIMER_SECONDS)


#: Each with what `look`, or `look_at_self`, sees of it.
WRONGS: Final[dict[str, tuple[str, Callable[[], object]]]] = {
    "signals blocked": ("SigBlk", _block_all),
    "signals ignored": ("SigIgn", _ignore_all),
    "SIGCHLD ignored": ("SigIgn", lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)),
    "signals pending": ("ShdPnd", _leave_pending),
    "limit on CPU time": ("limits", _limit(resource.RLIMIT_CPU, 60)),
    "limit on real time": ("limits", _limit(resource.RLIMIT_RTTIME, 1 << 20)),
    "limit on files": ("limits", _limit(resource.RLIMIT_NOFILE, 100)),
    "limit on the size of files": ("limits", _limit(resource.RLIMIT_FSIZE, 1 << 20)),
    "limit on pending signals": ("limits", _limit(resource.RLIMIT_SIGPENDING, 3)),
    "small stack": ("limits", _limit(resource.RLIMIT_STACK, 1 << 20)),
    "large stack": ("limits", _limit(resource.RLIMIT_STACK, 1 << 30)),
    "idle policy": ("policy", lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))),
    "nice": ("nice", lambda: os.nice(7)),
    "idle I/O": ("ioprio", lambda: _libc.syscall(_IOPRIO_SET, 1, 0, _IDLE_CLASS)),
    "one processor": ("Cpus_allowed", lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})),
    "umask": ("Umask", lambda: os.umask(0o077)),
    "open files": ("files", _open_files),
    "another's socket": ("environment", _listen_for_another),
    "removed folder": ("folder", _stand_in_a_removed_folder),
    "timer slack": ("own slack", lambda: _libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(10**9))),
    "interval timers": ("timers", _have_a_timer),
    "no address randomization": ("personality", lambda: _libc.personality(_ADDR_NO_RANDOMIZE)),
    "parent's death": ("death signal", lambda: _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGUSR1))),
    "subreaper": ("subreaper", lambda: _libc.prctl(_PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0)))),
    "early kill": ("early kill", lambda: _libc.prctl(_PR_MCE_KILL, *map(ctypes.c_ulong, (1, 1, 0, 0)))),
    "first for the OOM killer": ("OOM score", lambda: Path("/proc/self/oom_score_adj").write_text("500")),
    "no environment": ("environment", _empty_environment),
    "locale": ("environment", _variable("LC_ALL", "C")),
    "another locale": ("environment", _variable("LANG", "POSIX")),
    "PYTHONHOME": ("environment", _variable("PYTHONHOME", "/opt/conda")),
    "PYTHONPATH": ("environment", _shadow_modules),
    "PYTHONOPTIMIZE": ("environment", _variable("PYTHONOPTIMIZE", "2")),
    "PYTHONDEVMODE": ("environment", _variable("PYTHONDEVMODE", "1")),
    "PYTHONWARNINGS": ("environment", _variable("PYTHONWARNINGS", "error")),
    "PYTHONMALLOC": ("environment", _variable("PYTHONMALLOC", "debug")),
    "LD_PRELOAD": ("environment", _variable("LD_PRELOAD", "libm.so.6")),
    "LD_LIBRARY_PATH": ("environment", _variable("LD_LIBRARY_PATH", "/opt/conda/lib")),
    "MALLOC_PERTURB_": ("environment", _variable("MALLOC_PERTURB_", "85")),
    "GLIBC_TUNABLES": ("environment", _variable("GLIBC_TUNABLES", "glibc.malloc.check=3")),
    "steps of another": ("environment", _variable("ZCACHE_STEPS", "1")),
}
if Path("/proc/self/numa_maps").exists():
    WRONGS["one memory node"] = (
        "numa",
        lambda: _libc.syscall(_SET_MEMPOLICY, _MPOL_BIND, ctypes.byref(ctypes.c_ulong(1)), ctypes.c_ulong(64)),
    )
if _libc.prctl(_PR_GET_MEMORY_MERGE, *map(ctypes.c_ulong, (0, 0, 0, 0))) >= 0:
    WRONGS["merging of pages"] = (
        "merging",
        lambda: _libc.prctl(_PR_SET_MEMORY_MERGE, *map(ctypes.c_ulong, (1, 0, 0, 0))),
    )
#: Which nobody can put right without CAP_SYS_NICE.
PRIVILEGED: Final = frozenset({"idle policy", "nice"})
#: What would hide others, or cannot be together with them.
_NOT_WITH_OTHERS: Final = frozenset({"no environment", "large stack", "another locale"})
ALL: Final = tuple(name for name in WRONGS if name not in _NOT_WITH_OTHERS)


def command(wrongs: "tuple[str, ...]", words: "list[str]") -> list[str]:
    """What starts `words` like that."""
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), ",".join(wrongs), *words]


def look(pid: int) -> dict[str, object]:
    """What the kernel hands on, of a process."""
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
    stat = (folder / "stat").read_text().rpartition(")")[2].split()
    numa = folder / "numa_maps"
    found: dict[str, object] = {name: status[name] for name in ("SigBlk", "SigIgn", "ShdPnd", "Cpus_allowed", "Umask")}
    found |= {
        "nice": stat[16],
        "policy": stat[38],
        "limits": [resource.prlimit(pid, number) for number in range(16)],
        "ioprio": _libc.syscall(_IOPRIO_GET, 1, pid),
        "OOM score": (folder / "oom_score_adj").read_text(),
        "slack": _slack(folder) if stat[38] == "0" else "of a real-time thread",
        "personality": (folder / "personality").read_text(),
        "numa": sorted({line.split()[1] for line in numa.read_text().splitlines()}) if numa.exists() else [],
        "folder": str((folder / "cwd").readlink()),
        "files": sorted(int(entry.name) for entry in (folder / "fd").iterdir()),
        "environment": dict(
            word.partition("=")[::2] for word in os.fsdecode((folder / "environ").read_bytes()).split("\0") if word
        ),
    }
    return found


def _slack(folder: Path) -> str:
    try:
        return (folder / "timerslack_ns").read_text()
    except PermissionError:  # it takes CAP_SYS_NICE
        return ""


def look_at_self() -> dict[str, object]:
    """What only the process itself can ask for."""
    word = ctypes.c_int()
    _libc.prctl(2, ctypes.byref(word))
    death_signal = word.value
    _libc.prctl(37, ctypes.byref(word))
    return {
        "timers": [
            bool(any(signal.getitimer(which)))
            for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
        ],
        "own slack": _libc.prctl(30, *map(ctypes.c_ulong, (0, 0, 0, 0))),
        "death signal": death_signal,
        "subreaper": word.value,
        "merging": _libc.prctl(_PR_GET_MEMORY_MERGE, *map(ctypes.c_ulong, (0, 0, 0, 0))),
        "early kill": _libc.prctl(34, *map(ctypes.c_ulong, (0, 0, 0, 0))),
    }


if __name__ == "__main__":
    for wrong in filter(None, sys.argv[1].split(",")):
        WRONGS[wrong][1]()
    os.execvp(sys.argv[2], sys.argv[2:])
