"""What stands against a process that wants memory, files and threads: limits that it inherits, and
strict overcommit.

One table, and the control groups that the process is in (`zcache.linux.group_limits`). Each limit
is lifted as far as that is allowed, before anything is asked for; what is then still too low for
what was configured is refused in one line, rather than met later, on the way to a successor. And an
error of the kernel's (`in_words`) is put down to the limit that it came from, with what to do about
it.

Strict overcommit (`vm.overcommit_memory=2`): the kernel promises no more memory than `CommitLimit`,
whether or not it will be used. All private writable memory counts, and again in each copy made by
fork(2); shared memory counts where it was touched (Documentation/mm/overcommit-accounting.rst).
"""

import contextlib
import errno
import resource
from typing import Final, NamedTuple

from zcache.errors import BadInput, ZcacheError
from zcache.linux import group_limits, meminfo
from zcache.linux.process import status_bytes

#: Descriptors of a server beside its clean exports: nbdkit's, ours, and of a few dozen connections.
DESCRIPTORS: Final = 128

FOR_STORE: Final = "for this size and budget; raise it, or give less of them"

_MIB: Final = 1 << 20


class Limit(NamedTuple):
    """Of setrlimit(2); `option` is ulimit's."""

    number: int
    option: str
    what: str

    def soft(self) -> int | None:
        """As it is now; None: there is none."""
        value, _ = resource.getrlimit(self.number)
        return None if value == resource.RLIM_INFINITY else value

    def is_inherited(self) -> bool:
        """Whether there is one, and it could not be lifted: one that `Ceiling` has set could."""
        soft, hard = resource.getrlimit(self.number)
        return soft == hard != resource.RLIM_INFINITY

    def refuse_below(self, needed: int, why: str) -> None:
        """Raises `BadInput` if it is lower than that."""
        soft = self.soft()
        if soft is not None and soft < needed:
            raise BadInput(
                f"the limit on {self.what} (ulimit {self.option}) is {_amount(self, soft)}, and could not be lifted: "
                f"{_amount(self, needed)} are needed {why}"
            )


ADDRESS_SPACE: Final = Limit(resource.RLIMIT_AS, "-v", "address space")
DATA: Final = Limit(resource.RLIMIT_DATA, "-d", "private memory")
FILE_SIZE: Final = Limit(resource.RLIMIT_FSIZE, "-f", "the size of files")
OPEN_FILES: Final = Limit(resource.RLIMIT_NOFILE, "-n", "open files")
PROCESSES: Final = Limit(resource.RLIMIT_NPROC, "-u", "processes and threads")
LOCKED_MEMORY: Final = Limit(resource.RLIMIT_MEMLOCK, "-l", "locked memory")
PENDING_SIGNALS: Final = Limit(resource.RLIMIT_SIGPENDING, "-i", "pending signals")
#: Who uses that up is killed; so is his successor.
CPU_TIME: Final = Limit(resource.RLIMIT_CPU, "-t", "processor time")
#: What a thread with a real-time policy may run without ever waiting.
REAL_TIME: Final = Limit(resource.RLIMIT_RTTIME, "-R", "processor time at real-time priority")
LIMITS: Final = (
    *(ADDRESS_SPACE, DATA, FILE_SIZE, OPEN_FILES, PROCESSES, LOCKED_MEMORY),
    *(PENDING_SIGNALS, CPU_TIME, REAL_TIME),
)
#: What is allowed at most, and not a need: up to the hard limit, and no further.
CEILINGS: Final = (
    Limit(resource.RLIMIT_RTPRIO, "-r", "real-time priority"),
    Limit(resource.RLIMIT_NICE, "-e", "nice values"),
)


def _amount(limit: Limit, value: int) -> str:
    if limit is CPU_TIME:
        return f"{value} s"
    if limit is REAL_TIME:
        return f"{value} us"
    return str(value) if limit in (OPEN_FILES, PROCESSES, PENDING_SIGNALS) else _mib(value)


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes // _MIB)} MiB"


def lift() -> None:
    """Each as far as it goes: away with CAP_SYS_RESOURCE, else up to its hard limit. Programs to be
    started inherit that."""
    for limit in LIMITS:
        soft, hard = resource.getrlimit(limit.number)
        for wanted in ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (hard, hard)):
            if soft != resource.RLIM_INFINITY:
                with contextlib.suppress(ValueError, OSError):
                    resource.setrlimit(limit.number, wanted)
                    break
    for limit in CEILINGS:
        _, hard = resource.getrlimit(limit.number)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit.number, (hard, hard))


def check(
    *, mapped_bytes: int, private_bytes: int, why: str = FOR_STORE, files: dict[str, int] | None = None, more: int = 0
) -> None:
    """Raises `BadInput` for the first limit that is too low: for so many bytes more of address
    space, and of private memory; for files of such sizes, by what they are; for so many descriptors
    `more` than `DESCRIPTORS`."""
    ADDRESS_SPACE.refuse_below(_own_bytes("VmSize") + mapped_bytes, why)
    DATA.refuse_below(data_bytes() + private_bytes, why)
    OPEN_FILES.refuse_below(DESCRIPTORS + more, "for the server and its clients; raise it")
    for name, needed_bytes in (files or {}).items():
        FILE_SIZE.refuse_below(needed_bytes, f"for {name}; raise it, or give a smaller size")


def check_promise(needed_bytes: int, advice: str) -> None:
    """Under strict overcommit, raises `BadInput` if so much more will not be promised."""
    if meminfo.is_overcommit_strict():
        limit_bytes, promised_bytes = (meminfo.read_bytes(name) for name in ("CommitLimit", "Committed_AS"))
        missing_bytes = promised_bytes + needed_bytes - limit_bytes
        if missing_bytes > 0:
            raise BadInput(
                f"vm.overcommit_memory=2: {_mib(needed_bytes)} are needed now, {_mib(missing_bytes)} more than the "
                f"kernel will promise (CommitLimit {_mib(limit_bytes)}, Committed_AS {_mib(promised_bytes)}); "
                f"raise vm.overcommit_ratio or vm.overcommit_kbytes, {advice}"
            )


def check_groups(parts: dict[str, int], advice: str) -> None:
    """Raises `BadInput` if a control group does not leave that much memory: so many bytes, by what
    they are for."""
    needed_bytes = sum(parts.values())
    tightest = min(group_limits.rooms(), key=lambda room: room.available, default=None)
    if tightest and tightest.available < needed_bytes:
        listed = ", ".join(f"{_mib(size_bytes)} {what}" for what, size_bytes in parts.items())
        raise BadInput(
            f"{tightest.in_words()}, and leaves {tightest.available // _MIB} MiB: {_mib(needed_bytes)} are needed, for "
            f"nothing of it can be swapped out ({listed}); raise it, {advice}"
        )


def check_tasks(needed: int, what: str) -> None:
    """Raises `BadInput` if a control group does not leave so many processes and threads."""
    tightest = group_limits.least_tasks()
    if tightest and tightest.available < needed:
        raise BadInput(
            f"{tightest.name} is {tightest.limit}, and leaves {tightest.available}: {needed} more threads and "
            f"processes are needed {what}; raise it to {tightest.limit - tightest.available + needed} or more"
        )


def in_words(error: BaseException) -> str:
    """What an error means, and what to do about it, as far as it is one of the kernel's."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return _no_memory()
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{_is(OPEN_FILES)}; raise it, or fs.file-max"
    if number == errno.EFBIG:
        return f"{_is(FILE_SIZE)}; raise it, or give a file system that holds larger files"
    if number == errno.EAGAIN or (isinstance(error, RuntimeError) and "thread" in str(error)):
        return f"no thread or process could be started: {_no_task()}"
    return ""


def _no_task() -> str:
    """Which limit on processes and threads it was, or may have been."""
    tightest = group_limits.least_tasks()
    of_group = f"{tightest.name} is {tightest.limit}, and leaves {tightest.available}; raise it" if tightest else ""
    if tightest and not tightest.available:
        return of_group
    return f"{_is(PROCESSES)}; {_no_memory()}{f'; or {of_group}' if of_group else ''}"


def _no_memory() -> str:
    """Which limit on memory it may have been: those that there are."""
    words = [
        f"{_is(limit)}, {_mib(_own_bytes(name))} are used; raise it"
        for limit, name in ((ADDRESS_SPACE, "VmSize"), (DATA, "VmData"))
        if limit.is_inherited()
    ]
    with contextlib.suppress(OSError):
        if meminfo.is_overcommit_strict():
            limit_bytes, promised_bytes = (meminfo.read_bytes(name) for name in ("CommitLimit", "Committed_AS"))
            words.append(
                f"vm.overcommit_memory=2: CommitLimit {_mib(limit_bytes)}, Committed_AS {_mib(promised_bytes)}; "
                "raise vm.overcommit_ratio or vm.overcommit_kbytes, or give a smaller budget"
            )
    if not words:
        with contextlib.suppress(OSError):
            available_bytes = meminfo.read_bytes("MemAvailable")
            least = min(group_limits.rooms(), key=lambda room: room.available, default=None)
            if least and least.available < available_bytes:
                where, available_bytes = f" ({least.in_words()})", least.available
            else:
                where = ""
            words.append(f"no memory: {_mib(available_bytes)} can be had{where}; free some, or give a smaller budget")
    return ", or ".join(words) or "no memory; free some, or give a smaller budget"


def deadly() -> list[str]:
    """Those that end a process that did nothing wrong, and could not be lifted."""
    return [_is(limit) for limit in (CPU_TIME, REAL_TIME) if limit.soft() is not None]


def _is(limit: Limit) -> str:
    soft = limit.soft()
    return f"the limit on {limit.what} (ulimit {limit.option}) is {'none' if soft is None else _amount(limit, soft)}"


def data_bytes() -> int:
    """What counts towards the limit on private memory now."""
    return _own_bytes("VmData")


def private_bytes() -> int:
    """What this process has in memory that is nobody else's, nor a file's."""
    return _own_bytes("RssAnon")


def _own_bytes(name: str) -> int:
    return status_bytes("self", name)


def explain(what: str, error: BaseException) -> str:
    """One line for whatever error, and what failed; ours say all themselves. Of what nobody has
    foreseen, the place."""
    if isinstance(error, ZcacheError):
        return str(error)
    if isinstance(error, OSError):
        text = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
    else:
        text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    words = ""
    with contextlib.suppress(Exception):  # no memory, nor a descriptor, to find out
        words = in_words(error)
    if not words:
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        if trace:
            words = f"at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
    return f"{what}: {text}; {words}" if words else f"{what}: {text}"
