"""What swap-up leaves for swap-down: one JSON file in a folder that only root can enter.

The file is written before there is anything to undo (a keeper with its server, and then a device),
so that even a swap-up that was killed outright can be taken down.  It is replaced whole, by rename.
/run is emptied at boot, as the device and the server are, so a state never outlives the kernel that
it speaks of.

An advisory lock on the folder keeps two swap-ups or swap-downs from working on it at the same time.
"""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from zcache.errors import SwapError
from zcache.linux.process import ProcessIdentity, is_pid

DEFAULT_FOLDER = Path("/run/zcache")

#: How a swap is taken off that nothing is known of.
WITHOUT_STATE = (
    "if /proc/swaps names its /dev/nbdN: swapoff that, remove the folder, end the keeper (SIGTERM), nbd-client -d"
)


class Backing(NamedTuple):
    """The file or device below. Its numbers (st_dev, st_ino) are known of a file that swap-up has
    made."""

    path: str
    device: int | None = None
    inode: int | None = None
    is_kept: bool = False  # though swap-up has made it

    @property
    def is_made(self) -> bool:
        return self.inode is not None


class SwapState(NamedTuple):
    """What swap-up has done so far, and what of its options others need: swap.json."""

    # Who holds the image and starts the servers; it ends the server when it is told to end.
    keeper: ProcessIdentity
    # None until the kernel has been given the connection.
    device: str | None = None
    # /sys/block/nbdN/pid while it is ours: the process that attached it.  A device of the same name
    # which someone else attached later shows another pid.  Known before the device is: one that
    # attached and was killed before it could say where is found by it.
    attached_by_pid: int | None = None
    backing: Backing | None = None
    # What `zcache sleep` needs to take the swap off for a hibernation and turn it on again
    # (`swap-up --hibernate`).
    may_hibernate: bool = False
    is_discarding: bool = False

    def attached_by(self, pid: int) -> "SwapState":
        return self._replace(attached_by_pid=pid)

    def with_device(self, device: str) -> "SwapState":
        return self._replace(device=device)


def encode(state: SwapState) -> str:
    backing = state.backing and state.backing._asdict()
    fields = state._asdict() | {"keeper": state.keeper._asdict(), "backing": backing}
    return json.dumps(fields, indent=2) + "\n"


def decode(text: str) -> SwapState:
    """Raises an error of Python's own for what `encode` does not make: what follows acts on it as
    root."""
    fields = json.loads(text)
    # A state of before that was noted has none.
    backing = Backing(**fields["backing"]) if "backing" in fields and fields["backing"] is not None else None
    state = SwapState(**{**fields, "keeper": ProcessIdentity(**fields["keeper"]), "backing": backing})
    ticks, device = state.keeper.start_time_ticks, state.device
    if not (is_pid(state.keeper.pid) and type(ticks) is int and ticks >= 0):
        raise ValueError("keeper: no process")
    if device is not None and not (type(device) is str and re.fullmatch("/dev/nbd[0-9]{1,7}", device)):
        raise ValueError("device: not /dev/nbdN")
    if state.attached_by_pid is not None and not is_pid(state.attached_by_pid):
        raise ValueError("attached_by_pid: no process")
    if backing is not None and not _is_backing(backing):
        raise ValueError("backing: no file")
    if not (type(state.may_hibernate) is bool and type(state.is_discarding) is bool):
        raise ValueError("may_hibernate, is_discarding: true or false")
    return state


def _is_backing(backing: Backing) -> bool:
    numbers = (backing.device, backing.inode)
    is_known = all(type(number) is int and number >= 0 for number in numbers)
    is_path = type(backing.path) is str and backing.path.startswith("/") and "\0" not in backing.path
    return is_path and (is_known or numbers == (None, None)) and type(backing.is_kept) is bool


class StateFolder:
    """The files of one swap area, by name; whatever else lies in the folder is not ours and is left
    alone."""

    def __init__(self, path: Path = DEFAULT_FOLDER) -> None:
        self.path = path
        self.state = path / "swap.json"
        self.socket = path / "nbd.sock"
        self.control = path / "control"
        self.log = path / "server.log"
        # From swap-up to the keeper: the netlink message that gives the device a new server; and
        # back: it has it.
        self.reconnection = path / "reconnection"
        # From swap-up to swap-down: the one that fails all requests, when nobody is left to answer
        # them.
        self.disconnection = path / "disconnection"
        self.armed = path / "armed"
        # From `zcache sleep` to itself and to the keeper: which control groups are frozen
        # (frozen.py).
        self.frozen = path / "frozen"
        # From `zcache sleep` to itself: the swap is off for a hibernation, and had this priority
        # (taken_off.py).
        self.taken_off = path / "taken-off"

    def create(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._refuse_if_shared()
        if self.path.stat().st_mode & 0o077:  # such as /etc
            raise SwapError(f"{self.path}: others may look into it; give a folder of its own, new or of mode 0700")

    def _refuse_if_shared(self) -> None:
        """What is in it is believed, by root: nobody else may write there."""
        status = self.path.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise SwapError(f"others may write to {self.path}, or own it; give another folder, or none")

    def load(self) -> SwapState | None:
        try:
            self._refuse_if_shared()
            return decode(self.state.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SwapError(f"{self.state} is damaged ({str(error)!a}); {WITHOUT_STATE}") from error

    def save(self, state: SwapState) -> None:
        _write_whole(self.state, encode(state).encode())

    def arm_keeper(self, reconnection: bytes, disconnection: bytes) -> None:
        """Give it the message by which it can connect the device to a new server.

        Called in the keeper's control group: memory of a tmpfs belongs to the group of who writes
        it, and that group's is never swapped out. swap-down reads these files even when nobody
        serves the device any more; so what was written before, elsewhere, is written again.
        """
        state = self.load()
        if state:
            self.save(state)
        _write_whole(self.disconnection, disconnection)
        _write_whole(self.reconnection, reconnection)  # last: the keeper waits for it

    @property
    def cgroup(self) -> str:
        """The name of the keeper's control group."""
        return str(self.path.absolute()).strip("/").replace("/", "-")

    def disarm_keeper(self) -> None:
        """It no longer connects the device again when its connection ends."""
        self.reconnection.unlink(missing_ok=True)

    def _files(self) -> tuple[Path, ...]:
        """The state comes last: where it is, the others are known to be ours."""
        parts = (self.frozen.with_suffix(".part"), self.state.with_suffix(".part"))
        messages = (self.reconnection, self.disconnection)
        sleep = (self.frozen, self.taken_off)
        return (self.socket, self.control, self.log, *messages, self.armed, *sleep, *parts, self.state)

    def refuse_if_used(self) -> None:
        """In a folder without a state, files of these names are somebody else's, or those of a swap
        that is on and has lost its state."""
        for path in self._files():
            # What precedes the first state: a swap-up that was killed then has left it, and nothing
            # else.
            if path.exists() and not (path.suffix == ".part" or (path == self.log and not path.stat().st_size)):
                raise SwapError(f"{path} is there, but no {self.state.name}: give another folder, or {WITHOUT_STATE}")

    def clear(self) -> bool:
        """Whether anything was there."""
        found = [path for path in self._files() if os.path.lexists(path)]
        for path in found:
            path.unlink(missing_ok=True)
        return bool(found)

    def remove(self) -> None:
        self.clear()
        self._remove_empty()

    def remove_traces(self) -> None:
        """What a swap-up left that was killed before it did anything; an empty folder may be
        anybody's."""
        if self.clear():
            self._remove_empty()

    def _remove_empty(self) -> None:
        # Not empty: something of the user's is in there.
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @contextlib.contextmanager
    def locked(self, is_worth_waiting: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hold the existing folder; the lock ends with the process, or with the folder.
        `is_worth_waiting` is asked again and again while another command holds it."""
        folder_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                while not _lock(folder_fd, is_worth_waiting):
                    time.sleep(0.2)
            except BlockingIOError as error:
                raise SwapError(f"another swap-up, swap-upgrade or swap-down is at work in {self.path}") from error
            if not self.path.exists() or not os.path.samestat(os.fstat(folder_fd), self.path.stat()):
                raise SwapError(f"{self.path} was taken down at this moment; run the command again")
            yield
        finally:
            os.close(folder_fd)


def _write_whole(path: Path, content: bytes) -> None:
    """Replaced at once, or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.chmod(0o600)
    part.replace(path)


def _lock(descriptor: int, is_worth_waiting: Callable[[], bool]) -> bool:
    """Whether it is locked now; raises `BlockingIOError` if it is not, and is not worth waiting
    for."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not is_worth_waiting():
            raise
        return False
    return True
