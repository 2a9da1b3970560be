"""The server: puts the pieces together for one `Config`, in the order that safety asks for.

`get_ready` (before the front end has a socket, in the process that may still fork): everything
that can be refused. Then, in the process that stays, with one thread: `make_safe`, the protections
and the warm-up; `wait_for_turn`, where a standby is ready for the death of the server that it will
succeed, and then opens what `get_ready` left to it; `start`, the store, and only then threads.
`begin_to_serve`, when requests may come. `stop`: the reverse; `leave`, with a successor; `abandon`,
after a failure in any of them. What it needs of the front end is in `front_end.py`.
"""

import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from zcache.budget.breathing import BREATH_SECONDS, Breathing
from zcache.control.listener import ControlSocket
from zcache.control.peaks import Peaks
from zcache.control.settings import Settings
from zcache.control.status import gather_status
from zcache.errors import BadInput, EnvironmentProblem
from zcache.hardening import Hardening, threads
from zcache.hardening.ceiling import Ceiling
from zcache.hardening.log_pipe import say
from zcache.hardening.own_thread import try_threads
from zcache.hardening.program import unshare
from zcache.hardening.unused_memory import release_unused_bss
from zcache.image.image import SECRET_BYTES
from zcache.image.signs import Signs
from zcache.linux import libc, meminfo
from zcache.linux.group_limits import GroupLimits
from zcache.page_loop.choice import described
from zcache.pages.tmem import TmemObject
from zcache.server import assembly, standby
from zcache.server.config import Config
from zcache.server.files import Files
from zcache.server.front_end import FrontEnd
from zcache.server.needs import check_available, check_limits, kept_free, thread_count, tight_groups
from zcache.server.upkeep import Upkeep
from zcache.server.warm_up import try_seal
from zcache.steps import Steps
from zcache.store.store import Store
from zcache.tiers import Tier

if TYPE_CHECKING:
    from zcache.clean.clean_disk import CleanDisk

KEEPER_IS_GONE: Final = (
    "the keeper is gone: if this server ends, all that is swapped out is lost; swap-down soon, then swap-up"
)


class Server:
    """A device of `config.size_bytes`, and clean exports beside it, over one store."""

    #: From `start` on: the store, the device's pages in it, and clean exports.
    store: Store
    pages: TmemObject
    clean: "list[CleanDisk]"

    def __init__(self, config: Config, steps: Steps, front_end: FrontEnd) -> None:
        self.config = config
        self._front_end = front_end
        self._steps = steps
        self._is_successor = False
        self._files = Files(config, steps, _say)
        self._given: list[int] = []  # the descriptors of a predecessor's files
        self._control: ControlSocket | None = None
        self._upkeep: list[Upkeep] = []
        self._hardening: Hardening | None = None
        self._signs: Signs | None = None
        self._keeper_pid: int | None = None
        self._groups: GroupLimits | None = None
        self._remote = assembly.make_remote_place(config, self._files, _say)
        self._is_sharing = False  # its memory with its heir, page by page until it writes there

    def get_ready(self) -> None:
        """Open and check what was configured; raises `BadInput` or `EnvironmentProblem`.

        A standby opens nothing: it would meet the server that is there. But it says now if it could
        not go on with the image. What is made from here on, the front end's Unix socket and pid
        file too, is for its owner alone, whatever mask the front end has set.
        """
        os.umask(0o177)
        with contextlib.suppress(OSError):  # it costs address space, and promises, and nothing else
            release_unused_bss()
        self._groups = assembly.look_at_groups(self.config)
        self._files.look_up()
        if self.config.standby is None:
            self._open()
        else:
            assembly.check_succession(self.config)

    def _open(self) -> None:
        config = self.config
        self._is_successor = config.is_succession
        self._steps.begin("looking at the image and at the memory that there is")
        assembly.check_succession(config)
        check_limits(config, self._is_successor, self._front_end.client_threads)
        check_available(config, self._is_successor)
        self._steps.begin("opening the backing and the disks")
        if config.image is not None and config.standby is not None and self._is_successor:
            self._files.adopt(config.image, self._given)
        else:
            self._files.open()
        self._steps.begin("making the control socket")
        if config.remark and not self._is_successor:
            _say(config.remark)
        if config.control:
            try:
                self._control = ControlSocket(config.control)
            except BadInput as error:
                if not self._is_successor:
                    raise
                _say(f"WARNING: {error}")

    def make_safe(self) -> None:
        """All that can be done before there is a store: apply the protections, and run all code
        once. Raises `EnvironmentProblem`."""
        self._steps.begin("trying the seal")
        libc.forbid_core_dumps()
        libc.load_libgcc()
        trial_seal = assembly.trial_seal(self.config)  # now: what that runs through need not be locked
        without = assembly.left_out()
        if self.config.hardening == "off" or "threads" in without:
            threads.leave_as_they_are()
        if self.config.hardening != "off":
            self._hardening = Hardening(without - {"threads", "warm_up"}, step=self._steps.begin)
            self._hardening.apply()
        if not self.config.is_succession:  # which does not refuse, and has none to spare while nobody serves
            self._steps.begin("trying the threads that it will need")
            try_threads(thread_count(self.config, self._front_end.client_threads))
        self._steps.begin("running everything once (warm-up)")
        if "warm_up" not in without:
            backing = None if self._is_successor else self._files.backing  # that holds pages
            assembly.run_everything(self.config, backing, trial_seal)
            # Whoever takes over has no time for that while nobody serves.
            if self._remote and (self.config.standby is None or self._groups is not None):
                self._remote.try_out(trial_seal, self._steps, may_refuse=self.config.standby is None)
            assembly.rehearse_control(self.config.allocator)
            gc.collect()  # the scratch stores are in cycles: their memory is given back now

    def wait_for_turn(self) -> None:
        """A standby waits here until the keeper says that it is the server, and opens what it
        needs; it ends itself when the keeper does. Raises as `get_ready` does."""
        if self.config.standby is None:
            return
        keeper, self._given = standby.wait_for_turn(self.config.standby, self._steps, self._get_heir_ready)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # when the heir ends, nobody waits for it here
        self._keeper_pid = os.getppid()  # of an heir, too, by now: the keeper is a subreaper
        self._open()
        files = self._files.descriptors()
        if files and not self._is_successor:
            standby.hand_on(keeper, files)
        keeper.close()
        self._is_sharing = self._is_successor  # which is waited for
        if not self._is_successor:
            with contextlib.suppress(OSError):
                unshare()
            if "warm_up" not in assembly.left_out():
                seal = assembly.trial_seal(self.config)
                if self._files.backing:
                    assembly.run_everything(self.config, self._files.backing, seal)
                if self._remote:
                    self._remote.try_out(seal, self._steps, may_refuse=True)  # which were asked by now

    def _get_heir_ready(self) -> None:
        if self._hardening:
            self._hardening.lock_again()
            # Which the populating of the program leaves out.
            try_seal(assembly.trial_seal(self.config), self.config.frame_bytes)

    def start(self) -> None:
        """Be ready for requests; raises `BadInput`, and `EnvironmentProblem` with
        `hardening=require` when the process is not safe."""
        self._steps.begin("making the store")
        self.store, self.pages = self._make_store()
        self.clean = assembly.make_clean_disks(self.config, self._files.disks, self.store)
        breathing, settings = assembly.make_budget(
            self.config, self.store, self._signs, self._groups, kept_free(self.config), _say
        )
        if self._hardening:
            self._prove_safe(self._hardening, self.store)
        else:
            _say(f"hardening=off: NOT safe to swap to itself; {described()}")
        if self.config.min_budget_bytes < self.config.budget_bytes:
            breathing.report_limit()  # now that the least budget has its memory, and is not counted as left
        self._steps.begin("starting threads")
        self.store.reclaimer.start()
        peaks = Peaks(self.store)
        self._start_upkeep(breathing, peaks)
        if self._control:
            self._answer(self._control, breathing, peaks, settings)

    def _make_store(self) -> tuple[Store, TmemObject]:
        config, backing = self.config, self._files.backing
        image = assembly.open_image(config, backing)
        if image:
            self._signs = image.signs
            if meminfo.is_overcommit_strict() and not self._is_successor:
                image.allocate_tables(self._beat)
        secret = image.secret if image else os.urandom(SECRET_BYTES)
        tiers: list[Tier] = [backing] if backing else []
        if self._remote:
            self._steps.begin("connecting to the engines")
            tiers = self._remote.make(image, secret)
        return assembly.make_store(config, tiers, image, secret, self._steps, self._beat, _say)

    def _start_upkeep(self, breathing: Breathing, peaks: Peaks) -> None:
        self._upkeep.append(Upkeep("zcache-upkeep", self._fault_ahead))
        if self.store.compactor:
            self._upkeep.append(Upkeep("zcache-tidy", self.store.reclaimer.tidy_up))
        if self._signs:
            self._upkeep.append(Upkeep("zcache-beat", self._signs.beat))
        looks = (
            peaks.look,
            lambda: self._front_end.say_counts(False),
            breathing.breathe,
            Ceiling(self._groups if self.config.image is None else None).follow,  # when the budget has what it wants
        )
        self._upkeep.append(Upkeep("zcache-breath", *looks, seconds=BREATH_SECONDS))
        if self._remote:
            self._upkeep.append(self._remote.upkeep())
        if self.store.demoter:
            self._upkeep.append(Upkeep("zcache-demote", self.store.demoter.work))
        for upkeep in self._upkeep:
            upkeep.start()

    def _answer(self, control: ControlSocket, breathing: Breathing, peaks: Peaks, settings: Settings) -> None:
        """Whoever asks on the control socket, from now on."""
        holds = self._hardening.results if self._hardening else {}
        number = self._signs.epoch if self._signs else 1

        def status() -> dict[str, Any]:
            clean = [disk.status() for disk in self.clean]
            remote = self._remote.status() if self._remote else {}
            around = {**breathing.status(), **peaks.status(), "clean_exports": clean, **remote}
            troubles = [*self._troubles(), *filter(None, [breathing.trouble])]
            return gather_status(self.store, self.pages, holds, number, troubles, around)

        control.start(self.store, status, settings)

    def begin_to_serve(self) -> None:
        """The start has come to its end: say so."""
        self._steps.end()
        if self._signs:
            self._signs.begin_to_serve()

    def _troubles(self) -> list[str]:
        """What is wrong around the store."""
        troubles = [trouble for disk in self.clean for trouble in disk.troubles()]
        troubles += self._remote.troubles() if self._remote else []
        troubles += tight_groups(self._groups)
        return troubles if self._keeper_pid in (None, os.getppid()) else [KEEPER_IS_GONE, *troubles]

    def _fault_ahead(self) -> None:
        if self._is_sharing:
            with contextlib.suppress(OSError):  # at the next turn, then
                unshare()
                self._is_sharing = False
        self.store.fault_ahead()

    def _prove_safe(self, hardening: Hardening, store: Store) -> None:
        hardening.prefault(
            lambda: assembly.populate(self.config, store, self._beat, self._is_successor), store.is_populated
        )
        self._steps.begin("checking that it is safe")
        # A successor does not refuse: the pages are here already.
        if not hardening.self_check() and self.config.hardening == "require" and not self._is_successor:
            raise EnvironmentProblem(hardening.refusal())
        keys = self._front_end.keys() if self.config.standby is None else None  # a keeper gives none
        hardening.give_up_privileges(
            self.config.control,
            self._front_end.temporary_folder(),
            keys and keys.path,
            connect_ports=self._remote.ports if self._remote else (),
            connect_anywhere=bool(self._remote and self._remote.is_anywhere),
        )
        if keys:
            keys.check_readable()
        hardening.start()
        _say(f"{hardening.verdict()}; {described()}")

    def _beat(self) -> None:
        """There is progress."""
        self._steps.go_on()
        if self._signs:
            self._signs.beat()

    def count_connection(self, change: int) -> None:
        """A connection was opened (1), or has ended with all its requests (-1)."""
        if self._signs:
            self._signs.count_connection(change)

    def has_made(self, connection: socket.socket) -> bool:
        """Whether a connection of this process is to an engine, and not a client's. Raises
        `OSError` if it has ended."""
        return self._remote is not None and self._remote.has_made(connection)

    def abandon(self) -> None:
        """After a refusal: as if nothing had been begun. Whatever threads there are end with the
        process."""
        undo: list[Callable[[], None]] = [self._front_end.turn_clients_away]
        if self._hardening:
            undo.append(self._hardening.close)  # gives stderr back, where the reason has to go
        if self._control:
            undo.append(self._control.close)
        undo += self._files.undo()
        for step in undo:
            with contextlib.suppress(Exception):  # all that can be
                step()

    def leave(self) -> None:
        """End at once, with everything in the image, whose keeper has a successor. The last one
        leaves nothing at engines."""
        self._front_end.say_counts(True)
        if self._remote and self._signs and self._signs.is_over:
            with contextlib.suppress(Exception):
                self._stop_writing()
                self._remote.farewell()
        if self._hardening:
            self._hardening.close()
        os._exit(0)

    def _stop_writing(self) -> None:
        """Nothing leaves RAM any more."""
        for upkeep in self._upkeep:
            upkeep.stop()
        self.store.reclaimer.stop()

    def stop(self) -> None:
        """Let flights land and close everything. The front end has ended all connections."""
        self._front_end.say_counts(True)
        if self._control:
            self._control.close()
        self._stop_writing()
        for disk in self.clean:
            disk.close()
        if self._remote:
            self._remote.farewell()
        self.store.close()
        if self._hardening:
            self._hardening.close()


def _say(line: str) -> None:
    say(f"zcache: {line}")
