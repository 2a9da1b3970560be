"""The server: puts the pieces together for one `Config`, in the order that safety asks for.

`get_ready` (before nbdkit has a socket, in the process that may still fork): everything that can be
refused. Then, in the process that stays, with one thread: `make_safe`, the protections and the
warm-up; `wait_for_turn`, where a standby is ready for the death of the server that it will succeed,
and then opens what `get_ready` left to it; `start`, the store, and only then threads. `stop`: the
reverse.
"""

import contextlib
import errno
import gc
import itertools
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nbd_plugin.captive import temporary_folder, turn_clients_away
from nbd_plugin.config import MAX_CLEAN, Config
from nbd_plugin.device import Device
from nbd_plugin.exports import Exports
from nbd_plugin.failures import Failures
from nbd_plugin.nbdkit_process import psk_file
from nbd_plugin.scratch import scratch_device
from zcache.allocators.choice import ALLOCATORS
from zcache.budget.breathing import BREATH_SECONDS, Breathing
from zcache.budget.budget import Budget
from zcache.budget.pressure import PressureGauge
from zcache.clean.disk_file import DiskFile
from zcache.clock import Clock
from zcache.control.listener import ControlSocket, rehearse
from zcache.control.peaks import Peaks
from zcache.control.settings import Settings
from zcache.control.status import gather_status
from zcache.errors import BadInput, EnvironmentProblem, Imbalance, PageDamaged
from zcache.hardening import Hardening, limits, threads
from zcache.hardening.heap import GrownHeap
from zcache.hardening.log_pipe import say
from zcache.hardening.own_thread import try_threads
from zcache.hardening.program import unshare
from zcache.hardening.unused_memory import release_unused_bss
from zcache.image.image import SECRET_BYTES, Geometry, Image, Signs, check_header, read_header
from zcache.linux import group_limits, libc, meminfo
from zcache.pageframes.slots import slots_of
from zcache.pages.entry import PAGE_BYTES
from zcache.pages.tmem import Kind, TmemObject
from zcache.reclaim.flight import flights_frames
from zcache.seals import Seal
from zcache.seals.crc import CRC
from zcache.server.rebuild import rebuild
from zcache.server.upkeep import Upkeep
from zcache.server.warm_up import try_seal, warm_up
from zcache.steps import Steps
from zcache.store.store import Store
from zcache.tiers.backing_file import BackingFile

if TYPE_CHECKING:
    from zcache.clean.clean_disk import CleanDisk

#: Names of protections to leave out, separated by commas: how `scripts/bench ablation` shows what
#: each is for.
WITHOUT_VARIABLE: Final = "ZCACHE_WITHOUT"

#: That a successor is given: the backing, and those of clean exports.
MAX_FILES: Final = MAX_CLEAN + 1

#: What the server locks beside its budget.
OWN_BYTES: Final = 40 << 20

#: What a keeper's standby locks, of its own: the more that there must be for one, beside the server
#: or to upgrade it.
STANDBY_BYTES: Final = 20 << 20

#: What it locks beside its budget and tables, exactly: for a control group, which may be small.
#: Measured on 2026-11-29: 18.7 MiB of its own, 7.8 of programs, and 1.3 of the kernel's.
EXACT_OWN_BYTES: Final = 28 << 20

#: What a control group must have left, but for file cache: for socket buffers, the heap, and file
#: cache that is being read, which the kernel cannot take back just then. (With 10 MiB left a server
#: was killed as it sent a reply, beside a program that read a file, 8 MiB ahead.) A budget that
#: breathes gives way when a quarter of it is used.
SERVING_BYTES: Final = 16 << 20

#: Threads for clients that are tried, and counted, at the start; each connection takes one.
CLIENT_THREADS: Final = 2

#: What one server counts for under strict overcommit, beside its image and budget: asked for once,
#: for its heir or what replaces it. It is counted itself by then, but for 4 to 9 MiB. Measured on
#: the host (2026-11-29): 18.2 MiB at the check and 21.9 when it serves, an heir 18.2; without a
#: keeper 12.6 and 20.8.
PROMISED_BYTES: Final = 25 << 20

#: No more frames than pages need are alive, whatever the size of the backing device; this is for
#: what dies in flight.
SPARE_BYTES: Final = 4 << 20

#: How the kernel says that memory cannot be populated: for want of it, or of a promise of it.
NO_MEMORY: Final = frozenset({errno.ENOMEM, errno.EFAULT, errno.ENOSPC})

KEEPER_IS_GONE: Final = (
    "the keeper is gone: if this server ends, all that is swapped out is lost; swap-down soon, then swap-up"
)


class Server:
    """A device of `config.size_bytes`, and clean exports beside it, over one store."""

    exports: Exports

    def __init__(self, config: Config, steps: Steps, failures: Failures) -> None:
        self.config = config
        self._failures = failures
        self._steps = steps
        self._is_successor = False
        self._tier: BackingFile | None = None
        self._files: list[int] = []  # descriptors that a successor is given: see `_open_files`
        self._clean_files: list[DiskFile] = []
        self._clean: list[CleanDisk] = []
        self._control: ControlSocket | None = None
        self._upkeep: list[Upkeep] = []
        self._hardening: Hardening | None = None
        self._signs: Signs | None = None
        self._keeper_pid: int | None = None
        self._groups: group_limits.GroupLimits | None = None
        self._is_sharing = False  # its memory with its heir, page by page until it writes there

    def get_ready(self) -> None:
        """Open and check what was configured; raises `BadInput` or `EnvironmentProblem`.

        A standby opens nothing: it would meet the server that is there. But it says now if it could
        not go on with the image. What is made from here on, nbdkit's Unix socket and pid file too,
        is for its owner alone: nbdkit has set the mask to 022.
        """
        os.umask(0o177)
        with contextlib.suppress(OSError):  # it costs address space, and promises, and nothing else
            release_unused_bss()
        self._groups = self._look_at_groups()
        if self.config.standby is None:
            self._open()
        else:
            check_succession(self.config)

    def _look_at_groups(self) -> group_limits.GroupLimits | None:
        """The limits of control groups, before the file system is given up; what is open, an heir
        has, too.

        None for a successor that starts while nobody serves: to look at mounts and groups takes
        locks of the kernel's, which may be held by somebody who waits for memory, and that for us.
        """
        if not self.config.is_succession:
            return group_limits.GroupLimits()
        with contextlib.suppress(Exception):  # a successor goes on without
            if Signs(self.config.image or 0).is_served():
                return group_limits.GroupLimits()
        return None

    def _open(self) -> None:
        config = self.config
        self._is_successor = config.is_succession
        self._steps.begin("looking at the image and at the memory that there is")
        check_succession(config)
        check_limits(config, self._is_successor)
        available_bytes = meminfo.read_bytes("MemAvailable")
        # A server that goes on with an image finds its budget in RAM, and none to spare beside it.
        if not self._is_successor and config.min_budget_bytes + OWN_BYTES > available_bytes:
            raise BadInput(
                f"budget={config.min_budget_bytes}: {available_bytes} bytes of RAM can be had now, and all of that "
                "is locked at the start; give less, or free memory"
            )
        self._steps.begin("opening the backing and the disks")
        self._open_files()
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

    def _open_files(self) -> None:
        """The backing, and those of clean exports; or, after another server of the same keeper,
        what that had opened, in the same order, whatever has become of their names."""
        config = self.config
        if config.image is not None and config.standby is not None and self._is_successor:
            given: Iterator[int | None] = itertools.chain(self._files, itertools.repeat(None))
            if config.backing:
                slot_count = _frames_below(config, config.image)
                self._tier = BackingFile.adopt(next(given), config.backing, slot_count, config.frame_bytes, report=_say)
            for export in config.clean:
                descriptor = next(given)
                if descriptor is None:
                    _say(f"WARNING: clean={export}: has not been handed on; it is empty, and fails")
                self._clean_files.append(DiskFile.adopt(descriptor))
            return
        for export in config.clean:
            try:
                self._clean_files.append(DiskFile.open(export.path, export.read_only))
            except BadInput as error:
                raise BadInput(f"clean={export}: {error}; give a disk image or block device that is there") from None
        if config.backing:
            self._tier = BackingFile.open(
                config.backing,
                needed_bytes=0 if config.overcommit else config.below_bytes,
                new_bytes=config.below_bytes,
                frame_bytes=config.frame_bytes,
                force=config.force,
                max_slots=config.needed_frames + SPARE_BYTES // config.frame_bytes,
                report=_say,
                tell=self._tell,
                go_on=self._steps.go_on,
                made=self._steps.made,
            )
            mode = config.backing.stat().st_mode
            if stat.S_ISREG(mode) and mode & (0o022 if config.encrypt else 0o066):
                _say(
                    f"WARNING: backing={config.backing}: has mode {mode & 0o777:o}, so others may "
                    f"{'spoil' if config.encrypt else 'see or spoil'} what is swapped out; chmod 600"
                )

    def _tell(self, progress: str) -> None:
        """How far a step has got: in the log, and to whoever watches the start."""
        _say(progress)
        self._steps.begin(progress)

    def make_safe(self) -> None:
        """All that can be done before there is a store: apply the protections, and run all code
        once. Raises `EnvironmentProblem`."""
        self._steps.begin("trying the seal")
        libc.forbid_core_dumps()
        libc.load_libgcc()
        trial_seal = self._new_seal(os.urandom(SECRET_BYTES))  # now: what that runs through need not be locked
        without = _left_out()
        if self.config.hardening == "off" or "threads" in without:
            threads.leave_as_they_are()
        if self.config.hardening != "off":
            self._hardening = Hardening(without - {"threads", "warm_up"}, step=self._steps.begin)
            self._hardening.apply()
        if not self.config.is_succession:  # which does not refuse, and has none to spare while nobody serves
            self._steps.begin("trying the threads that it will need")
            try_threads(thread_count(self.config))
        self._steps.begin("running everything once (warm-up)")
        if "warm_up" not in without:
            self._warm_up(trial_seal)
            scratch = scratch_device(self.config.allocator)
            settings = Settings(scratch.store, new_budget(scratch.store, 1), None)
            rehearse(scratch.store, lambda: gather_status(scratch.store, scratch.pages, {}), settings)
            del scratch, settings
            gc.collect()  # the scratch stores are in cycles: their memory is given back now

    def wait_for_turn(self) -> None:
        """A standby waits here until the keeper says that it is the server; it ends itself when the
        keeper does. (What is sent: see `zcache.keeper.server_process`, which need not be loaded
        here.)

        Before it goes on it leaves a copy of itself, its heir, that waits in its place, unless it
        is told not to. Raises as `get_ready` does.
        """
        if self.config.standby is None:
            return
        keeper = socket.socket(fileno=self.config.standby)
        self._steps.wait("waiting for its turn")
        while True:
            try:
                keeper.sendall(b"r")
                word, files, _, _ = socket.recv_fds(keeper, 1, MAX_FILES)
            except ConnectionError:
                word = b""
            if not word:
                os._exit(0)
            if word == b"1":
                break
            self._steps.begin("leaving an heir")
            ends: tuple[socket.socket, ...] = ()
            try:
                ends = keepers, heirs = socket.socketpair()
                pid = os.fork()
                if pid:
                    socket.send_fds(keeper, [str(pid).encode()], [keepers.fileno()])
            except (OSError, MemoryError) as error:
                with contextlib.suppress(MemoryError):  # the keeper starts one, when there is a server again
                    _say(f"no heir: {error}")
                pid = -1
            if pid:
                for end in ends:
                    end.close()
                break
            keeper.close()
            keepers.close()
            keeper = heirs
            for descriptor in files:  # it is given some itself
                os.close(descriptor)
            if self._hardening:
                self._hardening.lock_again()
                try_seal(
                    self._new_seal(os.urandom(SECRET_BYTES)), self.config.frame_bytes
                )  # which the populating of the program leaves out
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # when the heir ends, nobody waits for it here
        self._keeper_pid = os.getppid()  # of an heir, too, by now: the keeper is a subreaper
        self._files = files
        self._open()
        files = [file.fileno() for file in (self._tier, *self._clean_files) if file]
        if files and not self._is_successor:
            with contextlib.suppress(OSError):
                socket.send_fds(keeper, [b"b"], files)
        keeper.close()
        self._is_sharing = self._is_successor  # which is waited for
        if not self._is_successor:
            with contextlib.suppress(OSError):
                unshare()
            if self._tier and "warm_up" not in _left_out():
                self._warm_up(self._new_seal(os.urandom(SECRET_BYTES)))

    def start(self) -> None:
        """Be ready for requests; raises `BadInput`, and `EnvironmentProblem` with
        `hardening=require` when the process is not safe."""
        self._steps.begin("making the store")
        store, pages = self._make_store()
        self._make_clean_disks(store)
        self.exports = Exports(Device(store, pages), {disk.name: disk for disk in self._clean})
        self._store = store
        breathing, settings = self._make_budget(store)
        if self._hardening:
            self._prove_safe(self._hardening, store)
        else:
            _say("hardening=off: NOT safe to swap to itself")
        if self.config.min_budget_bytes < self.config.budget_bytes:
            breathing.report_limit()  # now that the least budget has its memory, and is not counted as left
        self._steps.begin("starting threads")
        store.reclaimer.start()
        peaks = Peaks(store)
        self._upkeep.append(Upkeep("zcache-upkeep", self._fault_ahead))
        if store.compactor:
            self._upkeep.append(Upkeep("zcache-tidy", store.reclaimer.tidy_up))
        if self._signs:
            self._upkeep.append(Upkeep("zcache-beat", self._signs.beat))

        heap = GrownHeap()

        def breathe() -> None:
            peaks.look()
            heap.give_back()
            self._failures.say_counts()
            breathing.breathe()

        self._upkeep.append(Upkeep("zcache-breath", breathe, BREATH_SECONDS))
        for upkeep in self._upkeep:
            upkeep.start()
        if self._control:
            holds = self._hardening.results if self._hardening else {}
            number = self._signs.epoch if self._signs else 1

            def status() -> dict[str, Any]:
                around = {
                    **breathing.status(),
                    **peaks.status(),
                    "clean_exports": [disk.status() for disk in self._clean],
                }
                troubles = [*self._troubles(), *filter(None, [breathing.trouble])]
                return gather_status(store, pages, holds, number, troubles, around)

            self._control.start(store, status, settings)

    def begin_to_serve(self) -> None:
        """The start has come to its end: say so."""
        self._steps.end()
        if self._signs:
            self._signs.begin_to_serve()

    def _make_clean_disks(self, store: Store) -> None:
        if not self.config.clean:
            return
        from zcache.clean.clean_disk import CleanDisk  # locked in memory, where there are any

        pool = store.tmem.new_pool(Kind.EPHEMERAL)
        for export, file in zip(self.config.clean, self._clean_files, strict=True):
            self._clean.append(CleanDisk(export.name, file, export.read_only, store, pool))

    def _troubles(self) -> list[str]:
        """What is wrong around the store."""
        troubles = [trouble for disk in self._clean for trouble in disk.troubles()]
        troubles += [
            f"{room.in_words()}, and leaves {room.available >> 20}: at its limit the kernel ends programs there; "
            "raise it, or end some yourself"
            for room in (self._groups.rooms() if self._groups else ())
            if room.available < SERVING_BYTES // 2  # of what a fixed budget was started with
        ]
        return troubles if self._keeper_pid in (None, os.getppid()) else [KEEPER_IS_GONE, *troubles]

    def _fault_ahead(self) -> None:
        if self._is_sharing:
            with contextlib.suppress(OSError):  # at the next turn, then
                unshare()
                self._is_sharing = False
        self._store.fault_ahead()

    def _make_store(self) -> tuple[Store, TmemObject]:
        """A store and the object whose pages are the device's: empty, or as a predecessor left
        them."""
        config, tier = self.config, self._tier
        page_count = config.size_bytes // PAGE_BYTES
        image = None
        if config.image is not None:
            image = Image.open(config.image, geometry_of(config, tier.slot_count if tier else 0))
            self._signs = image.signs
            if meminfo.is_overcommit_strict() and not self._is_successor:
                image.allocate_tables(self._beat)
        seal = self._new_seal(image.secret if image else os.urandom(SECRET_BYTES))
        store = Store(
            budget_bytes=config.budget_bytes,
            codec=config.codec,
            allocator=config.allocator,
            recompress=config.recompress,
            admit=config.admit,
            tier=tier,
            seal=seal,
            image=image,
        )
        pool = store.tmem.new_pool(Kind.PERSISTENT)
        pages = store.tmem.new_object(pool, 0, page_count, image.section("entries") if image else None)
        if image and image.epoch > 1:
            begin = time.monotonic()
            try:
                self._steps.begin("taking over the pages")
                rebuild(store, pages, self._beat)
            except Imbalance as imbalance:
                raise EnvironmentProblem(f"what the last server left does not fit together: {imbalance}") from None
            _say(
                f"server number {image.epoch} of this swap: {store.statistics.stored_pages} pages taken over "
                f"in {time.monotonic() - begin:.1f} s"
            )
        return store, pages

    def _make_budget(self, store: Store) -> tuple[Breathing, Settings]:
        """As it was begun, or as a predecessor was told, and left it."""
        config, signs = self.config, self._signs
        budget = new_budget(store, config.min_budget_frames, signs.note_budget if signs else None)
        if not config.overcommit:
            below_frames = self._tier.slot_count if self._tier else 0
            budget.least_frames = max(budget.least_frames, config.needed_frames - below_frames)
        budget.min_frames = min(max(budget.min_frames, budget.least_frames), store.frames.max_budget_frames)
        settings = Settings(store, budget, signs, self._rooms)
        settings.take_over()
        budget.begin(signs.budget_frames if signs else 0)
        if self._groups is None and budget.min_frames < budget.max_frames:
            budget.max_frames = max(budget.min_frames, store.frames.budget_frames)
            _say("the budget does not grow now: the limits of control groups are not known; swap-upgrade looks at them")
        clock = Clock()
        gauge = PressureGauge(clock, groups=self._groups)
        return Breathing(store, budget, gauge, clock, reserve_bytes=kept_free(config), report=_say), settings

    def _rooms(self) -> list[group_limits.Room]:
        """What control groups leave beside what they must keep."""
        kept_bytes = kept_free(self.config)
        rooms = self._groups.rooms() if self._groups else ()
        return [room._replace(available=max(room.available - kept_bytes, 0)) for room in rooms]

    def _new_seal(self, key: bytes) -> Seal:
        if not self.config.encrypt:
            return CRC
        from zcache.seals.aead import Aead  # a library that nobody should lock in memory without need

        return Aead(key, self.config.frame_bytes, flights_frames(self.config.frame_bytes))

    def _prove_safe(self, hardening: Hardening, store: Store) -> None:
        hardening.prefault(lambda: self._populate(store), store.is_populated)
        self._steps.begin("checking that it is safe")
        is_safe = hardening.self_check()
        # A successor does not refuse: the pages are here already.
        if not is_safe and self.config.hardening == "require" and not self._is_successor:
            raise EnvironmentProblem(hardening.refusal())
        keys = psk_file() if self.config.standby is None else None  # a keeper gives nbdkit no such options
        hardening.give_up_privileges(self.config.control, temporary_folder(), keys)
        if keys:
            check_readable(keys)
        hardening.start()
        _say(hardening.verdict())

    def _populate(self, store: Store) -> None:
        """A budget that there is no memory for is none; but a successor goes on with what it
        has."""
        try:
            store.populate(self._beat)
        except OSError as error:
            if error.errno not in NO_MEMORY or self._is_successor:
                raise
            trouble = f"budget={self.config.min_budget_bytes}: there is no memory for it"
            raise EnvironmentProblem(f"{trouble}: {limits.in_words(MemoryError())}") from None

    def _beat(self) -> None:
        """There is progress."""
        self._steps.go_on()
        if self._signs:
            self._signs.beat()

    def _warm_up(self, seal: Seal) -> None:
        """With the tier, which is tried by that; not a successor's: it holds pages."""
        try:
            config = self.config
            warm_up(config.codec, config.allocator, config.recompress, None if self._is_successor else self._tier, seal)
        except PageDamaged as error:
            trouble = f"backing={self.config.backing}: what is written there does not come back ({error})"
            raise EnvironmentProblem(f"{trouble}; give another disk") from None

    def count_connection(self, change: int) -> None:
        """A connection was opened (1), or has ended with all its requests (-1)."""
        if self._signs:
            self._signs.count_connection(change)

    def abandon(self) -> None:
        """After a refusal: as if nothing had been begun. Whatever threads there are end with the
        process."""
        undo: list[Callable[[], None]] = [turn_clients_away]
        if self._hardening:
            undo.append(self._hardening.close)  # gives stderr back, where the reason has to go
        if self._control:
            undo.append(self._control.close)
        if self._tier:
            undo.append(self._tier.abandon)
        undo += [file.close for file in self._clean_files]
        for step in undo:
            with contextlib.suppress(Exception):  # all that can be
                step()

    def leave(self) -> None:
        """End at once, with everything in the image, whose keeper has a successor."""
        self._failures.say_counts(at_the_end=True)
        if self._hardening:
            self._hardening.close()
        os._exit(0)

    def stop(self) -> None:
        """Let flights land and close everything. nbdkit has ended all connections."""
        self._failures.say_counts(at_the_end=True)
        if self._control:
            self._control.close()
        for upkeep in self._upkeep:
            upkeep.stop()
        for disk in self._clean:
            disk.close()
        self._store.close()
        if self._hardening:
            self._hardening.close()


def geometry_of(config: Config, frames_below: int) -> Geometry:
    """How an image for this configuration is laid out."""
    return Geometry(
        page_count=config.size_bytes // PAGE_BYTES,
        slot_count=slots_of(config.budget_frames),
        frame_count=config.budget_frames + frames_below,
        frame_bytes=config.frame_bytes,
        encrypt="yes" if config.encrypt else "no",
        allocator=config.allocator,
        backing=str(config.backing) if config.backing else None,
    )


def check_limits(config: Config, is_successor: bool) -> None:
    """Whether what the process inherited leaves room for what is configured; raises `BadInput`. A
    successor does not refuse: the pages are here already."""
    if is_successor:
        return
    sections = geometry_of(config, config.below_bytes // config.frame_bytes).sections()
    store_bytes = sum(sections.values())
    tables_bytes = store_bytes - sections["ram"]
    is_kept = config.image is not None
    files = {"the image, which keeps the pages": store_bytes} if is_kept or meminfo.is_overcommit_strict() else {}
    if config.backing:
        files[f"backing={config.backing}"] = config.below_bytes + config.frame_bytes
    limits.check(
        mapped_bytes=store_bytes + OWN_BYTES,
        private_bytes=OWN_BYTES + (0 if is_kept else store_bytes),
        files=files,
        more=len(config.clean),
    )
    limits.check_promise(config.min_budget_bytes + tables_bytes + PROMISED_BYTES, "or give a smaller budget")
    limits.check_groups(
        {
            "budget": config.min_budget_bytes,
            "tables": tables_bytes,
            "server": max(EXACT_OWN_BYTES - limits.private_bytes(), 0),
            "room to serve in": SERVING_BYTES,
            **({"standby": STANDBY_BYTES} if is_kept else {}),
        },
        "or give a smaller budget or size",
    )
    limits.check_tasks(thread_count(config) + (2 if is_kept else 0), "for the server and its clients")


def thread_count(config: Config) -> int:
    """How many threads the server will have beside its first: log, reclaim, end, upkeep, breath;
    what is only there if it is asked for; and those of clients."""
    optional = config.allocator == "log", config.control is not None, config.image is not None
    return 5 + sum(optional) + CLIENT_THREADS


def kept_free(config: Config) -> int:
    """Of each control group's limit, in bytes: what else the server may need, and is not to give to
    its budget."""
    sections = geometry_of(config, config.below_bytes // config.frame_bytes).sections()
    tables_bytes = sum(sections.values()) - sections["ram"]
    return SERVING_BYTES + tables_bytes + (STANDBY_BYTES if config.image is not None else 0)


def check_succession(config: Config) -> None:
    """Whether this version can go on with the image that there is, if any; raises
    `EnvironmentProblem`."""
    if config.image is not None and config.is_succession:
        check_header(read_header(config.image), geometry_of(config, _frames_below(config, config.image)))


def _frames_below(config: Config, image: int) -> int:
    """How many slots a predecessor had below: as many as the image has frames for beyond the
    budget's."""
    count: int = read_header(image)["frame_count"] - config.budget_frames
    return count


def check_readable(keys: Path) -> None:
    """Whether GnuTLS will be able to read the keys, now that the process has no privileges; raises
    `BadInput`."""
    try:
        os.close(os.open(keys, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise BadInput(
            f"--tls-psk={keys}: {error.strerror}, and without its privileges the server reads it for each client; "
            "give a file that belongs to its user, in folders that do"
        ) from None


def new_budget(store: Store, min_frames: int, changed: Callable[[int], None] | None = None) -> Budget:
    """Of a store, with so many frames at least."""
    budget = Budget(
        store.frames, store.reclaimer, store.lock, store.statistics, min_frames, changed or (lambda _: None)
    )
    budget.least_frames = ALLOCATORS[store.allocator.name].min_budget_frames
    return budget


def _say(line: str) -> None:
    say(f"zcache: {line}")


def _left_out() -> set[str]:
    return {name for name in os.environ.get(WITHOUT_VARIABLE, "").split(",") if name}
