"""The keeper: holds the image, keeps it in memory, and puts a new server behind the device when one
has died.

It must never need the swap that it guards. So it is small, locked in memory as the server is,
speaks to nothing that can wait for swap, and loads nothing once the swap is on: the netlink message
that gives the kernel a new connection is made beforehand, by pyroute2 in swap-up
(`reconnection.py`), and only sent here; the NBD handshake is libnbd's. Whether the device is
connected, and the server alive, it sees in the image (`image.Signs`): it asks nobody. Files of the
state folder it does not read or write meanwhile: they lie in a tmpfs, and may be swapped out.

The next server is there before it is needed: a standby that has loaded and locked all it needs, and
waits. When the server dies, memory is short, nothing can be swapped, and a program that starts asks
for 20 MiB: the guest stood still for a minute and a half (seen). A standby that begins leaves an
heir, the next standby (`server_process.py`). If it dies with the server, one is started from disk
all the same, and is lent what the kernel keeps free (`reserve.py`).

Life: `python -m zcache.keeper FOLDER key=value…`. SIGTERM ends the server, then the keeper;
not from when it is armed until swap-down disarms it, or while the kernel swaps to the device:
nothing that ends processes, a shutdown included, gets at the pages before swapoff. SIGUSR1
(swap-upgrade) has a second standby started, from the code that is on disk now; when it is ready,
which it is not if it cannot go on with the image, it is the standby, and the server is ended.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zcache.errors import SwapError
from zcache.keeper import voice
from zcache.keeper.frozen import Forgotten
from zcache.keeper.locked_image import LockedImage
from zcache.keeper.reconnection import Reconnection, ServerNotThereError
from zcache.keeper.reserve import OOM_SECONDS, Reserve
from zcache.keeper.server_process import ServerProcess
from zcache.keeper.state import StateFolder
from zcache.keeper.voice import Complaints
from zcache.keeper.watched import Watched
from zcache.linux import cgroup
from zcache.linux.proc_swaps import ProcSwaps
from zcache.steps import Steps

#: What else may be sent to end a process that has lost its terminal, or whose user has lost
#: patience.
END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
#: Has the server replaced by the code on disk.
REPLACE_SIGNAL: Final = signal.SIGUSR1

#: How often the server, and what has been populated of the image, is looked at.
LOOK_SECONDS: Final = 0.1
#: How often the limit of the control group is, and what else others may change.
GROUP_SECONDS: Final = 1.0
#: Between two standbys, when one has ended by itself: doubled each time, until one is ready.
FIRST_REST_SECONDS: Final = 0.5
LAST_REST_SECONDS: Final = 8.0
#: As many servers end before they serve until the next one is not an heir, but started from what is
#: on disk.
LAST_FAILURE: Final = 3
#: A standby that is not ready by then, while there is no server, may never be. Under emulation,
#: with memory short, one took a minute and a half.
STANDBY_SECONDS: Final = 150.0
#: A server whose own threads have not run for this long never will: the next one has all that it
#: had. Ten times the longest that was seen under emulation.
HEARTBEAT_SECONDS: Final = 60.0


class Keeper:
    """The loop: lock, watch, replace, reconnect. `errors` is where servers write their messages."""

    def __init__(
        self, folder: StateFolder, socket: Path, parameters: Sequence[str], errors: int, steps: Steps | None = None
    ) -> None:
        self._steps = steps or Steps()  # for swap-up, until we are armed
        self._folder = folder
        self._socket = socket
        self._parameters = [f"control={folder.control}", *parameters]
        self._errors = errors
        self._image = LockedImage()
        self._swaps = ProcSwaps()
        self._reserve = Reserve()
        self._forgotten = Forgotten(folder.frozen)
        self._has_seen_swap = False
        self._is_from_disk = False  # what is to serve, or about to take over: the server died without a standby
        self._reconnection: Reconnection | None = None  # once swap-up has armed us
        self._device: str | None = None
        self._is_armed = False  # and swap-up knows it
        self._is_kept = False  # all of the image that there is
        self._is_ending = self._is_to_be_replaced = False
        self._is_broken_since: float | None = None
        self._has_stood_still = False  # the server, at its start, and that was said
        self._has_failed = False  # the server has ended before it served, and that was dealt with
        self._failures = 0  # how many have, one after the other
        self._complaints = Complaints()
        self._heartbeats = 0
        self._beat_seconds = time.monotonic()
        self._standby: ServerProcess | None = None
        self._replacement: ServerProcess | None = None  # a standby of other code than the server's, not ready yet
        self._old_standby: ServerProcess | None = None  # of the old code, until the new has served
        self._is_upgrading = False  # the standby is of new code
        self._rest_seconds = FIRST_REST_SECONDS
        self._next_standby_seconds = 0.0
        self._files: list[int] = []  # as the first server has opened them
        self._group = cgroup.SwaplessGroup() if cgroup.is_swapless() else None
        self._watched = Watched(self._reserve)
        self._next_group_seconds = self._next_watch_seconds = 0.0
        self._wakeup, self._signalled = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._server = self._start()
        self._server.begin([])

    def run(self) -> int:
        """Until SIGTERM, or until the server ends before we are armed; exit status."""
        for number in (*END_SIGNALS, REPLACE_SIGNAL):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._signalled)
        while True:
            poll = select.poll()
            poll.register(self._wakeup, select.POLLIN)
            if not self._server.has_ended():  # or it would never wait until there is a standby
                poll.register(self._server.pidfd, select.POLLIN)
            poll.poll(LOOK_SECONDS * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 64)
            try:
                status = self._turn()
            except Exception as error:  # no memory, no process: whatever it is, who would replace the server?
                self._complaints.complain(f"{type(error).__name__}: {error}")
                time.sleep(LOOK_SECONDS)
                continue
            if status is not None:
                return status

    def _turn(self) -> int | None:
        """What there is to do now; the exit status if that was all."""
        self._look()
        if self._is_ending:
            self._is_ending = False
            if not self._is_needed():
                self._end()
                return 0
        if self._server.has_ended():
            if not self._is_armed:
                self._end()
                return 1  # it has said why
            self._replace()
        elif self._is_cut_off():
            self._reconnect()
        return None

    def _end(self) -> None:
        self._reserve.put_back()
        for process in (self._standby or self._server.heir(), self._replacement, self._old_standby):
            if process:
                process.discard()
        self._server.end()
        status = self._server.exit_status()
        if status and status < 0 and not self._has_stood_still:
            voice.say(f"the server ended with status {status}")

    def abandon(self) -> None:
        """As if it had never been begun."""
        self._server.discard()

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == REPLACE_SIGNAL:
            self._is_to_be_replaced = True
        else:
            self._is_ending = True

    def _look(self) -> None:
        """What has to be done all the time, whatever else is being waited for. Nothing of it that
        fails (no memory, no process) keeps the rest from being done."""
        for duty in (
            self._watch_starts,
            self._keep_image,
            self._take_files,
            self._prepare,
            self._keep_standby,
            self._replace_on_request,
            self._lend_reserve,
            self._keep_swapless,
            self._put_back,
            self._thaw_forgotten,
        ):
            try:
                duty()
            except Exception as error:
                self._complaints.complain(f"{type(error).__name__}: {error}")
        if self._serves():
            self._failures = 0
            if self._old_standby and not self._is_upgrading:  # the new code serves
                self._old_standby.discard()
                self._old_standby = None
        signs = self._image.signs
        heartbeats = signs.heartbeats if signs else 0
        is_first = not signs or signs.epoch <= 1
        if heartbeats != self._heartbeats or (is_first and not heartbeats):  # which may look at a whole disk first
            self._heartbeats, self._beat_seconds = heartbeats, time.monotonic()
        elif time.monotonic() - self._beat_seconds > HEARTBEAT_SECONDS:
            if not self._server.has_ended():  # then its successor is what we wait for
                voice.say(f"no sign of life from the server for {HEARTBEAT_SECONDS:.0f} s: ending it")
                self._server.kill()
            self._beat_seconds = time.monotonic()

    def _lend_reserve(self) -> None:
        """While there is swap that nobody serves."""
        if self._serves() and not self._server.has_ended():
            self._is_from_disk = False
            self._reserve.take_back()
            if not self._has_seen_swap and self._is_swapping():  # swap-up has made its settings
                self._reserve.remember()
                self._has_seen_swap = True
        elif self._is_swapping():
            if self._server.has_ended() and not self._has_successor():
                self._is_from_disk = True
            self._reserve.lend(self._is_from_disk)
            is_stuck = self._server.has_ended() or time.monotonic() - self._beat_seconds > OOM_SECONDS
            if self._is_from_disk and is_stuck and self._reserve.is_used_up():
                voice.say("no memory is left for a server to start: having the kernel end a program (OOM killer)")
                self._reserve.kill_a_program()
        else:
            self._reserve.put_back()

    def _thaw_forgotten(self) -> None:
        """What was frozen for a suspend, if nobody did afterwards. Not while nobody serves: what
        the kernel does for it may wait for somebody who waits for memory, and that for a server,
        which we are to replace."""
        if not self._is_served():
            return
        thawed = self._forgotten.look()
        if thawed:
            voice.say(
                f"thawing {thawed} control groups: nobody did after `zcache sleep pre` (`zcache sleep post` does)"
            )

    def _is_served(self) -> bool:
        """Whether there is a server now that answers requests."""
        return self._serves() and not self._server.has_ended()

    def _has_successor(self) -> bool:
        """Whether there is a standby that need not start any more."""
        standbys = (self._standby, self._replacement, self._old_standby)
        return any(each and (each.is_heir or each.is_ready()) and not each.has_ended() for each in standbys)

    def _is_swapping(self) -> bool:
        return bool(self._device and self._swaps.find(self._device))

    def _keep_swapless(self) -> None:
        """What starts later must not be swapped out either, and somebody may have taken the group's
        limit away. Not while nobody serves, as above."""
        if self._group is None or time.monotonic() < self._next_group_seconds or not self._is_served():
            return
        self._next_group_seconds = time.monotonic() + GROUP_SECONDS
        if self._group.holds():
            return
        try:
            self._group.put_back()
        except OSError as error:
            lost = f"{self._group.path} has lost {cgroup.LIMIT}=0"
            self._complaints.complain(f"WARNING: {lost}, and it cannot be put back: {error.strerror}")
        else:
            voice.say(f"{self._group.path} had lost {cgroup.LIMIT}=0, which keeps a new server out of swap: put back")

    def _put_back(self) -> None:
        """What else keeps the swap safe, and others have changed. Not while nobody serves, as
        above."""
        if time.monotonic() < self._next_watch_seconds or not (self._has_seen_swap and self._is_served()):
            return
        self._next_watch_seconds = time.monotonic() + GROUP_SECONDS
        if self._is_swapping():
            servers = (self._server, self._standby, self._replacement, self._old_standby)
            pids = [server.pid for server in servers if server and not server.has_ended()]
            for line in self._watched.put_back(pids):
                self._complaints.complain(line)

    def _watch_starts(self) -> None:
        """Each step of the server's start has its deadline; what swap-up waits for is passed on to
        it. What starts beside a server may have a guest that thrashes to do it in, so one step may
        take as long as all of them: `STANDBY_SECONDS`. While nobody serves memory is shorter still,
        and it is not ended here."""
        is_served = self._serves() and not self._server.has_ended()
        for name, process in (
            ("server", self._server),
            ("standby", self._standby),
            ("code that is on disk now", self._replacement),
        ):
            if process is None or process.has_ended() or (process.is_heir and process is not self._server):
                continue
            step = process.stands_still()
            is_patient = process is not self._server and not (is_served and process.age_seconds() > STANDBY_SECONDS)
            if step and not is_patient:
                self._complaints.complain(f"error: the {name} stands still at its start, {step}: ending it")
                process.kill()
                self._has_stood_still = process is self._server
        waited_for = ("the server", self._server) if self._standby is None else ("the standby", self._standby)
        if not self._is_armed and waited_for[1].steps:
            self._steps.repeat(waited_for[0], waited_for[1].steps)

    def _keep_image(self) -> None:
        self._is_kept = False
        self._image.keep()
        self._is_kept = True

    def _take_files(self) -> None:
        if not self._files:
            self._files = self._server.files()

    def _serves(self) -> bool:
        """Whether the server has come so far as to serve, be it dead by now."""
        signs = self._image.signs
        return bool(signs and signs.pid == self._server.pid and signs.serves)

    def _prepare(self) -> None:
        """Take what swap-up leaves; it turns the swap on when we are armed."""
        if self._reconnection is None and self._folder.reconnection.exists():
            state = self._folder.load()
            self._device = state.device if state else None
            self._reconnection = Reconnection(self._folder.reconnection.read_bytes(), self._socket)

    def _start(self) -> ServerProcess:
        return ServerProcess.start(self._parameters, self._image.descriptor, self._errors, self._steps.step_seconds)

    def _keep_standby(self) -> None:
        """There shall be one that is ready, or on its way; but not while the last one takes over:
        that comes first."""
        if self._reconnection is None or (self._server.has_ended() and not self._is_armed):  # then we end, too
            return
        if self._standby is None:
            self._standby = self._server.heir()
        if self._standby is None:
            is_needed = self._serves() or self._server.has_ended()
            if is_needed and time.monotonic() > self._next_standby_seconds:
                self._rest()
                voice.say("starting a standby, of the code that is on disk now")
                self._standby = self._start()
        elif self._standby.has_ended():
            voice.say(f"the standby ended with status {self._standby.exit_status()}")
            self._standby.close()
            self._standby = None
            if self._is_upgrading:  # and not an heir of the new code, which is the server already
                self._fall_back()
        elif not self._standby.is_ready():
            if self._server.has_ended() and self._standby.age_seconds() > STANDBY_SECONDS:
                step = f" ({self._standby.steps.step})" if self._standby.steps else ""
                self._complaints.complain(f"the standby is not ready after {STANDBY_SECONDS:.0f} s{step}: ending it")
                self._standby.kill()
        else:
            self._rest_seconds = FIRST_REST_SECONDS
            if self._is_kept and not self._is_armed:
                self._folder.armed.touch()
                self._is_armed = True
                self._steps.end()

    def _rest(self) -> None:
        """Before another standby is started; longer each time, until one is ready."""
        self._next_standby_seconds = time.monotonic() + self._rest_seconds
        self._rest_seconds = min(2 * self._rest_seconds, LAST_REST_SECONDS)

    def _replace_on_request(self) -> None:
        """The standby is of the server's code, and stays until there is one of the code that is on
        disk now."""
        if self._is_to_be_replaced and self._reconnection:
            self._is_to_be_replaced = False
            if self._replacement:
                self._replacement.discard()
                self._replacement = None
            voice.say("starting the code that is on disk now")
            try:
                self._replacement = self._start()
            except OSError:
                self._refuse_upgrade()
                raise
        elif self._replacement and self._replacement.has_ended():
            voice.say(f"the code that is on disk now ended with status {self._replacement.exit_status()}")
            self._give_up_replacement()
        elif self._replacement and self._replacement.is_ready() and (self._serves() or self._server.has_ended()):
            self._switch()

    def _switch(self) -> None:
        """To other code, which is ready; not before there is a way back: a standby of the server's
        code."""
        assert self._replacement
        if self._old_standby:  # of before an upgrade that has not served yet
            if self._standby:
                self._standby.discard()
        elif self._standby and self._standby.is_heir:
            if not self._standby.is_ready():
                return
            self._old_standby = self._standby
        elif self._server.has_ended():  # there is nothing to go back to
            if self._standby:
                self._standby.discard()
        elif self._standby:
            voice.say(
                "error: the standby was started from disk, too: there would be no way back to the server's code; "
                "swap-down and swap-up make new ones of both"
            )
            self._give_up_replacement()
            return
        else:  # one is on its way
            return
        self._standby, self._replacement = self._replacement, None
        self._is_upgrading = True
        voice.say("it is ready: ending the server")
        self._is_broken_since = time.monotonic()
        self._server.end()

    def _is_needed(self) -> bool:
        """Whether the kernel swaps to the device, or swap-up is about to have it do so: it has
        armed us."""
        if not self._is_armed_still():
            return False
        voice.say(f"not ending: the kernel swaps to {self._device}, or will; take that off first (swap-down)")
        return True

    def _is_cut_off(self) -> bool:
        """Whether the device has no connection to a server that runs.

        The connection ends with the last of its requests, so a write that the kernel gave up
        waiting for is over before the kernel can send it again: it will never overwrite what came
        after it. Other clients' connections are not counted (`image.DEVICE_EXPORT`).
        """
        signs = self._image.signs
        return bool(signs and not signs.connections and self._is_armed_still())

    def _is_armed_still(self) -> bool:
        """swap-down takes the message away before it detaches the device; a folder that somebody
        has removed with the swap on says nothing."""
        return bool(self._reconnection and (self._is_swapping() or self._folder.reconnection.exists()))

    def _replace(self) -> None:
        """The server has ended: the standby takes its place, as soon as it is ready."""
        self._is_broken_since = self._is_broken_since or time.monotonic()
        if not (self._serves() or self._has_failed):
            self._has_failed = True
            self._failures += 1
            voice.say(f"the server ended before it served; {self._failures} in a row")
            if self._old_standby or self._failures % LAST_FAILURE == 0:
                self._give_up_heir()
        if self._standby and self._standby.is_ready():
            voice.say(f"the server ended with status {self._server.exit_status()}; the standby takes its place")
            self._has_failed = False
            self._server.close()
            if self._is_upgrading and self._image.signs:
                self._image.signs.begin_upgrade()
            self._is_upgrading = False
            self._server, self._standby = self._standby, None
            self._complaints.forget()
            self._server.begin(self._files, leaves_heir=self._server.is_heir or not self._is_from_disk)
            self._beat_seconds = time.monotonic()

    def _give_up_heir(self) -> None:
        """It is of the same code, and will fare no better than the server. What is on disk
        might."""
        heir = self._standby or self._server.heir()
        if heir:
            heir.discard()
        self._standby = None
        self._fall_back()

    def _fall_back(self) -> None:
        """To a standby of the code before an upgrade, if the new code has not served yet."""
        if self._old_standby:
            voice.say("going back to the code from before the upgrade")
            self._standby, self._old_standby = self._old_standby, None
            self._is_upgrading = False
            self._refuse_upgrade()

    def _give_up_replacement(self) -> None:
        assert self._replacement
        self._replacement.discard()
        self._replacement = None
        self._refuse_upgrade()

    def _refuse_upgrade(self) -> None:
        if self._image.signs:
            self._image.signs.refuse_upgrade()

    def _reconnect(self) -> None:
        """Connect the device to the server, which may still be starting; tried again at the next
        look."""
        assert self._reconnection
        begin = self._is_broken_since = self._is_broken_since or time.monotonic()
        try:
            self._reconnection.connect(self._is_worth_waiting)
        except ServerNotThereError:
            return  # yet
        except SwapError as error:
            self._complaints.complain(str(error))
            return
        self._complaints.forget()
        voice.say(f"the device is connected again, after {time.monotonic() - begin:.1f} s")
        self._is_broken_since = None

    def _is_worth_waiting(self) -> bool:
        self._look()
        return not (self._is_ending or self._server.has_ended())
