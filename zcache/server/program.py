"""The program that becomes a server, whatever its front end: what it does before it does. (The
server itself does not load this.)
"""

import os
import resource
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zcache.errors import BadInput
from zcache.linux.sockets import remove_if_dead
from zcache.server.start_guard import leave_guard
from zcache.steps import VARIABLE

#: Of each thread: a front end that sets no stack size has RLIMIT_STACK, which is put to this.
STACK_BYTES: Final = 512 << 10


def is_kept(parameters: Sequence[str]) -> bool:
    """Whether a keeper has started it, which has put right, and said, what there was."""
    return any(word.startswith("standby=") for word in parameters)


def is_successor(parameters: Sequence[str]) -> bool:
    """Whether there was a server before, whose pages are to be taken over
    (`Config.is_succession`)."""
    keys = dict(word.partition("=")[::2] for word in parameters)
    try:
        return os.fstat(int(keys["image"])).st_size > 0
    except (KeyError, ValueError, OSError):
        return False


def free_socket(option: str, text: str) -> None:
    """A server may leave its Unix socket behind when it ends, and then refuse to start on it.
    Removed if nobody answers there. Raises `BadInput`, which names the option, if something else is
    there."""
    path = Path(text)
    try:
        if remove_if_dead(path):
            raise BadInput(f"{option} {text}: a server listens there; end it, or give another path")
        if text not in ("", "-") and path.exists():
            raise BadInput(f"{option} {text}: something else is there; give a path that is free")
        if not path.absolute().parent.is_dir():
            raise BadInput(f"{option} {text}: its folder does not exist; give a path in an existing folder")
    except PermissionError:
        raise BadInput(f"{option} {text}: a socket of another user's is there; give another path") from None
    except OSError:  # whoever binds there will say what is wrong
        return


def guard_start(parameters: Sequence[str], sockets: Sequence[str], pid_files: Sequence[str]) -> None:
    """Have the start watched, and cleared away if it fails: the sockets, the control socket, the
    last of the pid files. A server's keeper does that itself."""
    keys = dict(word.partition("=")[::2] for word in parameters)
    if VARIABLE in os.environ or is_kept(parameters):
        return
    leave_guard(
        [Path(path).absolute() for path in (*sockets, keys.get("control", "")) if path not in ("", "-")],
        Path(pid_files[-1]).absolute() if pid_files else None,
    )


def prepare_python() -> None:
    """For a program that has Python in it, and becomes the server: where it finds this one's
    modules, the memory that it allocates, and the stacks of its threads. Ends the process if that
    cannot be."""
    root = Path(__file__).resolve().parents[2]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(root), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    )
    if "LISTEN_FDS" in os.environ:  # sd_listen_fds(3): said to us, meant for what we become
        os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["PYTHONNOUSERSITE"] = "1"
    os.environ["PYTHONMALLOC"] = "malloc"  # one heap for all, which can be populated: see zcache.hardening.heap
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if 0 <= hard < STACK_BYTES:
        sys.exit(f"zcache: the hard limit on stacks (ulimit -Hs) is {hard} bytes; raise it to {STACK_BYTES}")
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))
