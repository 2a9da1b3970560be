"""Who serves, who is next, and what brings new code: the processes, and what is done with them.

The rules are the tables in `states.py`; a docstring here names the event of there that it is, or
brings about. Any of it may fail at any line (no memory, no process): it is tried again at the next
look, from the state that is then read off the processes.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

from zcache.keeper import voice
from zcache.keeper.locked_image import LockedImage
from zcache.keeper.server_process import ServerProcess
from zcache.keeper.states import GUARDED, WANT_STANDBY, Phase, Service, State, Upgrade, state_of, upgrade_of
from zcache.keeper.voice import Complaints

#: Between two standbys, when one has ended by itself: doubled each time, until one is ready.
FIRST_REST_SECONDS: Final = 0.5
LAST_REST_SECONDS: Final = 8.0
#: As many servers end before they serve until the next one is not an heir, but started from what is
#: on disk.
LAST_FAILURE: Final = 3
#: A standby that is not ready by then, while there is no server, may never be. Under emulation,
#: with memory short, one took a minute and a half.
STANDBY_SECONDS: Final = 150.0


class Rest:
    """Before another standby is started from disk; longer each time, until one is ready."""

    __slots__ = ("_seconds", "end_seconds")

    def __init__(self) -> None:
        self._seconds = FIRST_REST_SECONDS
        self.end_seconds = 0.0

    def begin(self) -> None:
        self.end_seconds = time.monotonic() + self._seconds
        self._seconds = min(2 * self._seconds, LAST_REST_SECONDS)

    def is_over(self) -> bool:
        return time.monotonic() > self.end_seconds

    def shorten(self) -> None:
        """The next one is the first again."""
        self._seconds = FIRST_REST_SECONDS


class Failures:
    """Servers that have ended before they served."""

    __slots__ = ("count", "is_counted")

    def __init__(self) -> None:
        self.count = 0  # one after the other
        self.is_counted = False  # the one that is dead now

    def add(self) -> None:
        self.is_counted = True
        self.count += 1


class Outage:
    """From when on the device has had no server that answers."""

    __slots__ = ("_begin_seconds",)

    def __init__(self) -> None:
        self._begin_seconds: float | None = None

    def begin(self, is_new: bool = False) -> float:
        """Unless it has begun, or if a new one `is_new`; when that was."""
        if is_new or not self._begin_seconds:
            self._begin_seconds = time.monotonic()
        return self._begin_seconds

    def end(self) -> None:
        self._begin_seconds = None


class Succession:
    """One server that serves or is to, and up to three processes that may be next."""

    def __init__(
        self, start: Callable[[], ServerProcess], image: LockedImage, complaints: Complaints, outage: Outage
    ) -> None:
        """`start` makes a new process, from the code that is on disk then. The first is told to
        serve at once."""
        self._start = start
        self._image = image
        self._complaints = complaints
        self._outage = outage
        self.standby: ServerProcess | None = None
        self.replacement: ServerProcess | None = None  # a standby of other code than the server's, not the standby yet
        self.old_standby: ServerProcess | None = None  # of the old code, until the new has served
        self.is_new_code = False  # the standby is, and the server is not
        self.is_from_disk = False  # what is to serve, or about to take over: the server died without a standby
        self.rest = Rest()
        self.failures = Failures()
        self._has_ended = False
        self.server = start()
        self.server.begin([])

    def state(self) -> State:
        return State.ENDED if self._has_ended else state_of(self.service(), _phase(self.standby))

    def service(self) -> Service:
        if self.server.has_ended():
            return Service.DEAD
        return Service.SERVES if self.serves() else Service.BEGINS

    def upgrade(self) -> Upgrade:
        return upgrade_of(self.is_new_code, self.old_standby is not None)

    def replacement_phase(self) -> Phase:
        return _phase(self.replacement)

    def serves(self) -> bool:
        """Whether the server has come so far as to serve, be it dead by now."""
        signs = self._image.signs
        return bool(signs and signs.pid == self.server.pid and signs.serves)

    def is_served(self) -> bool:
        """Whether there is a server now that answers requests."""
        return self.service() is Service.SERVES

    def has_successor(self) -> bool:
        """Whether there is a standby that need not start any more."""
        standbys = (self.standby, self.replacement, self.old_standby)
        return any(each and (each.is_heir or each.is_ready()) and not each.has_ended() for each in standbys)

    def pids(self) -> list[int]:
        """Of all that run."""
        processes = (self.server, self.standby, self.replacement, self.old_standby)
        return [each.pid for each in processes if each and not each.has_ended()]

    def note_service(self) -> None:
        """SERVES: there is no need of a way back any more."""
        if not self.serves():
            return
        self.failures.count = 0
        if self.old_standby and self.upgrade() is Upgrade.ON_TRIAL:
            self.old_standby.discard()
            self.old_standby = None

    def note_death(self) -> None:
        """SERVER_DIED. If it was before it served, what was to be next may be of no use either."""
        if not (self.serves() or self.failures.is_counted):
            self.failures.add()
            voice.say(f"the server ended before it served; {self.failures.count} in a row")
            if self.old_standby or self.failures.count % LAST_FAILURE == 0:
                self._give_up_heir()

    def succeed(self, files: Sequence[int]) -> bool:
        """BEGUN, if the server is dead and the standby ready: that takes its place. Whether it has,
        now; it is given the `files` that the first server has opened."""
        if self.state() is not State.TAKES_OVER:
            return False
        assert self.standby
        voice.say(f"the server ended{self.server.status_in_words()}; the standby takes its place")
        self.failures.is_counted = False
        self.server.close()
        if self.is_new_code and self._image.signs:
            self._image.signs.begin_upgrade()
        self.is_new_code = False
        self.server, self.standby = self.standby, None
        self._complaints.forget()
        self.server.begin(files, leaves_heir=self.server.is_heir or not self.is_from_disk)
        return True

    def _give_up_heir(self) -> None:
        """GIVEN_UP, or FELL_BACK: it is of the same code, and will fare no better than the server.
        What is on disk might."""
        heir = self.standby or self.server.heir()
        if heir:
            heir.discard()
        self.standby = None
        self._fall_back()

    def end(self) -> int | None:
        """END: all of them, the server last; its exit status."""
        for process in (self.standby or self.server.heir(), self.replacement, self.old_standby):
            if process:
                process.discard()
        if self._image.signs:
            self._image.signs.end_swap()
        self.server.end()
        self._has_ended = True
        return self.server.exit_status()

    def keep_standby(self) -> bool:
        """There shall be one that is ready, or on its way: STANDBY_STARTED, STANDBY_READY,
        STANDBY_DIED. Whether one is ready."""
        if self.standby is None:
            self.standby = self.server.heir()
        if self.standby and self.standby.has_ended():
            self._bury_standby()
            return False
        state = self.state()
        if state in GUARDED:
            self.rest.shorten()
            return True
        if state in WANT_STANDBY and self.rest.is_over():
            self.rest.begin()
            voice.say("starting a standby, of the code that is on disk now")
            self.standby = self._start()
        elif state is State.DEAD_STANDBY_STARTS:
            self._end_late_standby()
        return False

    def _bury_standby(self) -> None:
        """STANDBY_DIED, or FELL_BACK."""
        assert self.standby
        voice.say(f"the standby ended{self.standby.status_in_words()}")
        self.standby.close()
        self.standby = None
        if self.is_new_code:  # and not an heir of the new code, which is the server already
            self._fall_back()

    def _end_late_standby(self) -> None:
        assert self.standby
        if self.standby.age_seconds() > STANDBY_SECONDS:
            step = f" ({self.standby.steps.step})" if self.standby.steps else ""
            self._complaints.complain(f"the standby is not ready after {STANDBY_SECONDS:.0f} s{step}: ending it")
            self.standby.kill()

    def start_replacement(self) -> None:
        """REQUESTED: the standby is of the server's code, and stays until there is one of the code
        that is on disk now."""
        if self.replacement:
            self.replacement.discard()
            self.replacement = None
        voice.say("starting the code that is on disk now")
        try:
            self.replacement = self._start()
        except OSError:
            self.refuse_upgrade()
            raise

    def keep_replacement(self) -> None:
        """REFUSED, if it has ended; and what is possible once it is ready."""
        if self.replacement and self.replacement.has_ended():
            voice.say(f"the code that is on disk now ended{self.replacement.status_in_words()}")
            self._give_up_replacement()
        elif self.replacement_phase() is Phase.READY and self.service() is not Service.BEGINS:
            self._switch()

    def _switch(self) -> None:
        """SWITCHED, to other code, which is ready; then the server is ended (SERVER_DIED). Not
        before there is a way back: a standby of the server's code. RESCUED, if the server is dead
        and has left none; REFUSED, if it lives and there will be none."""
        assert self.replacement
        if self.old_standby:  # of before an upgrade that has not served yet
            if self.standby:
                self.standby.discard()
        elif self.standby and self.standby.is_heir:
            if not self.standby.is_ready():
                return
            self.old_standby = self.standby
        elif self.server.has_ended():  # there is nothing to go back to
            if self.standby:
                self.standby.discard()
        elif self.standby:
            voice.say(
                "error: the standby was started from disk, too: there would be no way back to the server's code; "
                "swap-down and swap-up make new ones of both"
            )
            self._give_up_replacement()
            return
        else:  # one is on its way
            return
        self.standby, self.replacement = self.replacement, None
        self.is_new_code = True
        voice.say("it is ready: ending the server")
        self._outage.begin(is_new=True)
        self.server.end()

    def _fall_back(self) -> None:
        """FELL_BACK: to a standby of the code before an upgrade, if the new code has not served
        yet."""
        if self.old_standby:
            voice.say("going back to the code from before the upgrade")
            self.standby, self.old_standby = self.old_standby, None
            self.is_new_code = False
            self.refuse_upgrade()

    def _give_up_replacement(self) -> None:
        assert self.replacement
        self.replacement.discard()
        self.replacement = None
        self.refuse_upgrade()

    def refuse_upgrade(self) -> None:
        """Tell swap-upgrade."""
        if self._image.signs:
            self._image.signs.refuse_upgrade()


def _phase(process: ServerProcess | None) -> Phase:
    if process is None:
        return Phase.NONE
    return Phase.READY if process.is_ready() else Phase.STARTS
