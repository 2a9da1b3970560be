"""The keeper's loop: hold the image in memory, watch the server, put a new one behind the device
when it has died.

It must never need the swap that it guards. So it is small, locked in memory as the server is,
speaks to nothing that can wait for swap, and loads nothing once the swap is on: the netlink message
that gives the kernel a new connection is made beforehand, by pyroute2 in swap-up
(`reconnection.py`), and only sent here; the NBD handshake is libnbd's. Whether the device is
connected, and the server alive, it sees in the image (`signs.Signs`): it asks nobody. Files of the
state folder it does not read or write meanwhile: they lie in a tmpfs, and may be swapped out.

The next server is there before it is needed: a standby that has loaded and locked all it needs, and
waits. When the server dies, memory is short, nothing can be swapped, and a program that starts asks
for 20 MiB: the guest stood still for a minute and a half (seen). A standby that begins leaves an
heir, the next standby (`succession.py`). If it dies with the server, one is started from disk all
the same, and is lent what the kernel keeps free (`reserve.py`).

SIGTERM ends the server, then the keeper; not from when it is armed until swap-down disarms it, or
while the kernel swaps to the device: nothing that ends processes, a shutdown included, gets at the
pages before swapoff. SIGUSR1 (swap-upgrade) has a replacement started, from the code that is on
disk now; when it is ready, which it is not if it cannot go on with the image, it is the standby,
and the server is ended.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zcache.errors import SwapError
from zcache.image.signs import Signs
from zcache.keeper import voice
from zcache.keeper.locked_image import LockedImage
from zcache.keeper.reconnection import ServerNotThereError
from zcache.keeper.reserve import OOM_SECONDS, Reserve
from zcache.keeper.server_process import ServerProcess
from zcache.keeper.signals import Signals
from zcache.keeper.state import StateFolder
from zcache.keeper.succession import STANDBY_SECONDS, Outage, Succession
from zcache.keeper.surroundings import Surroundings
from zcache.keeper.swap_device import SwapDevice
from zcache.keeper.voice import Complaints
from zcache.steps import Steps

#: How often the server, and what has been populated of the image, is looked at.
LOOK_SECONDS: Final = 0.1
#: A server whose own threads have not run for this long never will: the next one has all that it
#: had. Ten times the longest that was seen under emulation.
HEARTBEAT_SECONDS: Final = 60.0


class Heartbeat:
    """When the server has last shown that its threads run."""

    __slots__ = ("_count", "seconds")

    def __init__(self) -> None:
        self._count = 0
        self.begin()

    def begin(self) -> None:
        """It is as if it had shown it now."""
        self.seconds = time.monotonic()

    def look(self, signs: Signs | None) -> None:
        """The first server may look at a whole disk first."""
        count = signs.heartbeats if signs else 0
        is_first = not signs or signs.epoch <= 1
        if count != self._count or (is_first and not count):
            self._count = count
            self.begin()

    def age_seconds(self) -> float:
        return time.monotonic() - self.seconds


class Keeper:
    """The loop: lock, watch, replace, reconnect. `errors` is where servers write their messages."""

    def __init__(
        self, folder: StateFolder, socket: Path, parameters: Sequence[str], errors: int, steps: Steps | None = None
    ) -> None:
        self._steps = steps or Steps()  # for swap-up, until we are armed
        self.image = LockedImage()
        self.device = SwapDevice(folder, socket)
        self._reserve = Reserve()
        self._complaints = Complaints()
        self.surroundings = Surroundings(folder.frozen, self._reserve, self._complaints)
        self.signals = Signals()
        self._outage = Outage()
        self.heartbeat = Heartbeat()
        self._is_kept = False  # all of the image that there is
        self._has_stood_still = False  # the server, at its start, and that was said
        self._files: list[int] = []  # as the first server has opened them
        words = [f"control={folder.control}", *parameters]

        def start() -> ServerProcess:
            return ServerProcess.start(words, self.image.descriptor, errors, self._steps.step_seconds)

        self.succession = Succession(start, self.image, self._complaints, self._outage)

    def run(self) -> int:
        """Until SIGTERM, or until the server ends before we are armed; exit status."""
        self.signals.catch()
        while True:
            server = self.succession.server
            # One that has ended would never have us wait until there is a standby.
            self.signals.wait(None if server.has_ended() else server.pidfd, LOOK_SECONDS)
            try:
                status = self.turn()
            except Exception as error:  # no memory, no process: whatever it is, who would replace the server?
                self._complaints.complain(f"{type(error).__name__}: {error}")
                time.sleep(LOOK_SECONDS)
                continue
            if status is not None:
                return status

    def turn(self) -> int | None:
        """What there is to do now; the exit status if that was all."""
        self._look()
        if self.signals.is_ending:
            self.signals.is_ending = False
            if not self.device.is_needed():
                self.end()
                return 0
        if self.succession.server.has_ended():
            if not self.device.is_armed:
                self.end()
                return 1  # it has said why
            self._replace()
        elif self._is_cut_off():
            self._reconnect()
        return None

    def end(self) -> None:
        self._reserve.put_back()
        status = self.succession.end()
        if status and status < 0 and not self._has_stood_still:
            voice.say(f"the server ended with status {status}")

    def abandon(self) -> None:
        """As if it had never been begun."""
        self.succession.server.discard()

    def _look(self) -> None:
        """What has to be done all the time, whatever else is being waited for. Nothing of it that
        fails (no memory, no process) keeps the rest from being done."""
        for duty in (
            self.watch_starts,
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
        self.succession.note_service()
        self._watch_heartbeat()

    def _watch_heartbeat(self) -> None:
        self.heartbeat.look(self.image.signs)
        if self.heartbeat.age_seconds() > HEARTBEAT_SECONDS:
            server = self.succession.server
            if not server.has_ended():  # then its successor is what we wait for
                voice.say(f"no sign of life from the server for {HEARTBEAT_SECONDS:.0f} s: ending it")
                server.kill()
            self.heartbeat.begin()

    def _lend_reserve(self) -> None:
        """While there is swap that nobody serves."""
        succession, device = self.succession, self.device
        if succession.is_served():
            succession.is_from_disk = False
            self._reserve.take_back()
            if not device.has_been_swapped_to and device.is_swapping():  # swap-up has made its settings
                self._reserve.remember()
                device.has_been_swapped_to = True
        elif device.is_swapping():
            is_dead = succession.server.has_ended()
            if is_dead and not succession.has_successor():
                succession.is_from_disk = True
            self._reserve.lend(succession.is_from_disk)
            is_stuck = is_dead or self.heartbeat.age_seconds() > OOM_SECONDS
            if succession.is_from_disk and is_stuck and self._reserve.is_used_up():
                voice.say("no memory is left for a server to start: having the kernel end a program (OOM killer)")
                self._reserve.kill_a_program()
        else:
            self._reserve.put_back()

    def _keep_swapless(self) -> None:
        if self.succession.is_served():
            self.surroundings.keep_swapless()

    def _put_back(self) -> None:
        is_to_be_watched = self.device.has_been_swapped_to and self.succession.is_served()
        if is_to_be_watched and self.surroundings.is_watch_due() and self.device.is_swapping():
            self.surroundings.put_back(self.succession.pids())

    def _thaw_forgotten(self) -> None:
        if self.succession.is_served():
            self.surroundings.thaw_forgotten()

    def watch_starts(self) -> None:
        """Each step of the server's start has its deadline; what swap-up waits for is passed on to
        it. What starts beside a server may have a guest that thrashes to do it in, so one step may
        take as long as all of them: `STANDBY_SECONDS`. While nobody serves memory is shorter still,
        and it is not ended here."""
        succession = self.succession
        is_served = succession.is_served()
        for name, process in (
            ("server", succession.server),
            ("standby", succession.standby),
            ("code that is on disk now", succession.replacement),
        ):
            if process is None or process.has_ended() or (process.is_heir and process is not succession.server):
                continue
            step = process.stands_still()
            is_patient = process is not succession.server and not (
                is_served and process.age_seconds() > STANDBY_SECONDS
            )
            if step and not is_patient:
                self._complaints.complain(f"error: the {name} stands still at its start, {step}: ending it")
                process.kill()
                self._has_stood_still = process is succession.server
        name, waited_for = (
            ("the standby", succession.standby) if succession.standby else ("the server", succession.server)
        )
        if not self.device.is_armed and waited_for.steps:
            self._steps.repeat(name, waited_for.steps)

    def _keep_image(self) -> None:
        self._is_kept = False
        self.image.keep()
        self._is_kept = True

    def _take_files(self) -> None:
        if not self._files:
            self._files = self.succession.server.files()

    def _prepare(self) -> None:
        self.device.prepare()

    def _keep_standby(self) -> None:
        """Once swap-up asks for one. Not if the server has ended before we are armed: then we end,
        too."""
        device = self.device
        if device.reconnection is None or (self.succession.server.has_ended() and not device.is_armed):
            return
        if self.succession.keep_standby() and self._is_kept and not device.is_armed:
            device.arm()
            self._steps.end()

    def _replace_on_request(self) -> None:
        if self.signals.is_to_be_replaced and self.device.reconnection:
            self.signals.is_to_be_replaced = False
            self.succession.start_replacement()
        else:
            self.succession.keep_replacement()

    def _is_cut_off(self) -> bool:
        """Whether the device has no connection to a server that runs.

        The connection ends with the last of its requests, so a write that the kernel gave up
        waiting for is over before the kernel can send it again: it will never overwrite what came
        after it. Other clients' connections are not counted (`signs.DEVICE_EXPORT`).
        """
        signs = self.image.signs
        return bool(signs and not signs.connections and self.device.is_armed_still())

    def _replace(self) -> None:
        """The server has ended."""
        self._outage.begin()
        self.succession.note_death()
        if self.succession.succeed(self._files):
            self.heartbeat.begin()

    def _reconnect(self) -> None:
        """Connect the device to the server, which may still be starting; tried again at the next
        look."""
        assert self.device.reconnection
        begin_seconds = self._outage.begin()
        try:
            self.device.reconnection.connect(self._is_worth_waiting)
        except ServerNotThereError:
            return  # yet
        except SwapError as error:
            self._complaints.complain(str(error))
            return
        self._complaints.forget()
        voice.say(f"the device is connected again, after {time.monotonic() - begin_seconds:.1f} s")
        self._outage.end()

    def _is_worth_waiting(self) -> bool:
        self._look()
        return not (self.signals.is_ending or self.succession.server.has_ended())
