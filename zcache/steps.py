"""The steps of a start, told to whoever watches it from outside.

What stands still cannot say so: it may wait in the kernel, or for a lock that nobody gives back,
with the interpreter's own lock held. So each step is announced on a pipe before it begins, with the
time that it may take, and whoever has the other end ends the process that does not keep to it, and
names the step: the keeper its servers, swap-up the keeper, `zcache.server.start_guard` a server
without a keeper. Progress moves the deadline, so a start that is slow (a large budget to populate,
a disk to look at) is left alone.

A message is a line: `step PID SECONDS NAME` (0.0: it has no deadline), `made PATH` (a file that has
to go if the start fails) or `end`. What does not fit into the pipe is dropped: nothing waits for
who watches.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: The environment names the descriptor under this.
VARIABLE: Final = "ZCACHE_STEPS"
#: And under this how long a step may take, if that is longer than usual.
SECONDS_VARIABLE: Final = "ZCACHE_STEP_SECONDS"

#: For a step that is not said to take longer: as long as a keeper waits for a sign of life. On the
#: host (2026-11-29, two CPUs at a load of 8) all steps of a start took 1.4 to 2.5 s together, and
#: the longest, to become nbdkit, 1.4 s.
STEP_SECONDS: Final = 60.0

#: Progress is told no more often than this.
REST_SECONDS: Final = 0.5

_PIPE_BYTES: Final = 65536


class Steps:
    """The process that starts; with no descriptor, nobody watches."""

    def __init__(self, descriptor: int | None = None, step_seconds: float = STEP_SECONDS) -> None:
        """`step_seconds` is what a step may take without progress, unless it is said to take
        longer."""
        self.name = "starting"
        self.have_ended = False
        self.step_seconds = step_seconds
        self._descriptor = descriptor
        self._seconds: float | None = step_seconds
        self._said_seconds = 0.0
        self._repeated: tuple[str, int] | None = None
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
            os.set_blocking(descriptor, False)

    @classmethod
    def from_environment(cls, *, is_passed_on: bool = False) -> "Steps":
        """As whoever started this process has it. Programs that it starts are not watched for it,
        unless it becomes one of them, which goes on."""
        number = os.environ.get(VARIABLE, "")
        try:
            step_seconds = max(STEP_SECONDS, float(os.environ.get(SECONDS_VARIABLE, STEP_SECONDS)))
            steps = cls(int(number), step_seconds) if number else cls()
        except (ValueError, OSError):  # not a descriptor: somebody's leftover
            steps, number = cls(), ""
        if not is_passed_on:
            os.environ.pop(VARIABLE, None)
            os.environ.pop(SECONDS_VARIABLE, None)
        elif number:
            os.set_inheritable(int(number), True)
        return steps

    def begin(self, name: str, seconds: float | None = None) -> None:
        """The next step, and how long it may take without progress (`step_seconds`, if that is not
        given)."""
        self.name, self._seconds = name, self.step_seconds if seconds is None else seconds
        self._tell()

    def wait(self, name: str) -> None:
        """The next step has no deadline: it waits for somebody, not for the machine."""
        self.name, self._seconds = name, None
        self._tell()

    def go_on(self) -> None:
        """There is progress."""
        if time.monotonic() - self._said_seconds > REST_SECONDS:
            self._tell()

    def repeat(self, who: str, watch: "StepsWatch") -> None:
        """What another process says of its start, to whoever watches this one, which ends it in
        time."""
        if (who, watch.saying) != self._repeated:
            self._repeated = who, watch.saying
            name = f"{who}: {watch.step}"
            if watch.seconds is None:
                self.wait(name)
            else:
                self.begin(name, watch.seconds + STEP_SECONDS)

    def made(self, path: Path) -> None:
        """A file, that whoever watches removes if this process ends before its start does."""
        self._write(f"made {path}")

    def end(self) -> None:
        """It has started."""
        self.have_ended = True
        self._write("end")

    def _tell(self) -> None:
        self._said_seconds = time.monotonic()
        self._write(f"step {os.getpid()} {self._seconds or 0.0:.1f} {self.name}")

    def _write(self, line: str) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, os.fsencode(line) + b"\n")


class StepsWatch:
    """The other end. `look` takes what was said; then `step` is where the start is, `pid` who said
    so, and `seconds` what it may take; None: as long as it likes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, step_seconds: float = STEP_SECONDS) -> None:
        """`step_seconds` is for each step that is not said to take longer."""
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._clock = clock
        self._rest = b""
        self.step = "starting the program"
        self.seconds: float | None = step_seconds
        self._step_seconds = step_seconds
        self.pid: int | None = None
        self.made: list[Path] = []
        self.saying = 0  # how often it was said
        self.has_ended = False  # it has started
        self._since_seconds = clock()
        self._users = 1

    def share(self) -> "StepsWatch":
        """For one more who will close it."""
        self._users += 1
        return self

    def fileno(self) -> int:
        """To poll."""
        return self._reader

    def pass_on(self) -> dict[str, str]:
        """What the environment of the process is to hold; it has to inherit `writer`, too."""
        return {VARIABLE: str(self.writer), SECONDS_VARIABLE: str(self._step_seconds)}

    def close(self) -> None:
        """The process has ended, or needs no watching."""
        self._users -= 1
        if not self._users:
            os.close(self._reader)

    def begin_anew(self, step: str) -> None:
        """The process was told to go on with its start, or another goes on with its channel.
        Nothing changes for one that has never said anything: it does not know of steps."""
        self.look()
        if self.saying:
            self.step, self.seconds = step, self._step_seconds
            self._since_seconds = self._clock()
            self.has_ended = False

    def look(self) -> bool:
        """Take what was said; False if nobody is left to say more."""
        while True:
            try:
                said = os.read(self._reader, _PIPE_BYTES)
            except OSError:  # nothing for now
                return True
            if not said:
                return False
            *lines, self._rest = (self._rest + said).split(b"\n")
            for line in lines:
                self._take(os.fsdecode(line))

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "step":
            pid, seconds, self.step = rest.split(" ", 2)
            self.pid, self.seconds = int(pid), float(seconds) or None
            self._since_seconds = self._clock()
            self.saying += 1
            self.has_ended = False  # an heir, which goes on with the channel of whom it succeeds
        elif word == "made":
            self.made.append(Path(rest))
        elif word == "end":
            self.has_ended = True
            self.step, self.seconds = "ready", None
            self.saying += 1

    def rest_seconds(self) -> float | None:
        """Until the step has taken too long, 0 or less if it has; None: it may take as long as it
        likes."""
        if self.has_ended or self.seconds is None:
            return None
        return self._since_seconds + self.seconds - self._clock()

    def is_overdue(self) -> bool:
        """Whether the step has taken too long."""
        rest_seconds = self.rest_seconds()
        return rest_seconds is not None and rest_seconds <= 0
