"""The server: puts the pieces together for one `Config`, in the order that safety asks for.

`get_ready` (before nbdkit has a socket, in the process that may still fork): everything that can be refused. `start`
(in the process that stays, with one thread): the store, the protections, the warm-up, and only then threads. `stop`:
the reverse.
"""

import gc
import os
import sys
import time
from typing import Final

import psutil

from nbd_plugin.config import MIN_BUDGET_BYTES, Config
from nbd_plugin.device import Device
from zcache.allocators.zbud import FRAME_BYTES
from zcache.codec import parse_codec
from zcache.control import ControlSocket
from zcache.errors import BadInput, EnvironmentProblem, Imbalance, PageDamaged
from zcache.hardening import Hardening, threads
from zcache.image import Geometry, Image
from zcache.pageframes.frames import slots_of
from zcache.rebuild import rebuild
from zcache.status import gather_status
from zcache.store import Store
from zcache.tiers.backing_file import BackingFile
from zcache.tmem import Kind, TmemObject
from zcache.upkeep import Upkeep
from zcache.warm_up import warm_up

#: Names of protections to leave out, separated by commas: how `scripts/bench ablation` shows what each is for.
WITHOUT_VARIABLE: Final = "ZCACHE_WITHOUT"

#: What the server locks beside its budget.
OWN_BYTES: Final = 40 << 20

#: No more frames than pages are alive, whatever the size of the backing device; these are for what dies in flight.
SPARE_SLOTS: Final = 1024


class Server:
    """One export: a device of `config.size_bytes` over one store."""

    device: Device

    def __init__(self, config: Config) -> None:
        self.config = config
        self._tier: BackingFile | None = None
        self._control: ControlSocket | None = None
        self._upkeep: Upkeep | None = None
        self._hardening: Hardening | None = None

    def get_ready(self) -> None:
        """Open and check what was configured; raises `BadInput` or `EnvironmentProblem`."""
        config = self.config
        memory = psutil.virtual_memory()
        if config.budget_bytes + OWN_BYTES > memory.available:
            raise BadInput(
                f"budget={config.budget_bytes}: {memory.available} bytes of RAM can be had now, and all of the budget "
                "is locked at the start; give less, or free memory"
            )
        if config.backing:
            self._tier = BackingFile.open(
                config.backing,
                needed_bytes=0 if config.overcommit else config.below_bytes,
                new_bytes=config.below_bytes,
                frame_bytes=FRAME_BYTES,
                force=config.force,
                max_slots=config.size_bytes // FRAME_BYTES + SPARE_SLOTS,
                report=_say,
            )
        if config.control:
            self._control = ControlSocket(config.control)

    def start(self) -> None:
        """Be ready for requests; raises `EnvironmentProblem` with `hardening=require` when the process is not safe."""
        config = self.config
        store, pages = self._make_store()
        self.device = Device(store, pages)
        if config.hardening == "off":
            threads.leave_as_they_are()
            self._warm_up()
            _say("hardening=off: NOT safe to swap to itself")
        else:
            self._hardening = self._make_safe(store)
        store.reclaimer.start()
        self._upkeep = Upkeep(store.fault_ahead)
        self._upkeep.start()
        if self._control:
            holds = self._hardening.results if self._hardening else {}
            self._control.start(store, lambda: gather_status(store, pages, holds))

    def _make_store(self) -> tuple[Store, TmemObject]:
        """A store and the object whose pages are the device's: empty, or as a predecessor left them."""
        config, tier = self.config, self._tier
        page_count = config.size_bytes // 4096
        image = None
        if config.image is not None:
            budget_frames = config.budget_bytes // FRAME_BYTES
            geometry = Geometry(
                page_count=page_count,
                slot_count=slots_of(budget_frames),
                frame_count=budget_frames + (tier.slot_count if tier else 0),
                frame_bytes=FRAME_BYTES,
                allocator=config.allocator,
                backing=str(tier.path) if tier else None,
            )
            image = Image.open(config.image, geometry)
        store = Store(budget_bytes=config.budget_bytes, codec=config.codec, tier=tier, image=image)
        pool = store.tmem.new_pool(Kind.PERSISTENT)
        pages = store.tmem.new_object(pool, 0, page_count, image.section("entries") if image else None)
        if image and image.epoch > 1:
            begin = time.monotonic()
            try:
                rebuild(store, pages)
            except Imbalance as imbalance:
                raise EnvironmentProblem(f"what the last server left does not fit together: {imbalance}") from None
            _say(
                f"server number {image.epoch} of this swap: {store.statistics.stored_pages} pages taken over "
                f"in {time.monotonic() - begin:.1f} s"
            )
        return store, pages

    def _make_safe(self, store: Store) -> Hardening:
        """Apply the protections, run all code once, and see what holds."""
        without = {name for name in os.environ.get(WITHOUT_VARIABLE, "").split(",") if name}
        if "threads" in without:
            threads.leave_as_they_are()
        hardening = Hardening(store.populate, store.is_populated, without - {"threads", "warm_up"})
        hardening.apply()
        try:
            if "warm_up" not in without:
                self._warm_up()
                gc.collect()  # the scratch store is in a cycle: its memory is given back now
            if not hardening.self_check() and self.config.hardening == "require":
                raise EnvironmentProblem(f"hardening=require: {hardening.verdict()}")
        except BaseException:
            hardening.close()  # gives stderr back, where the reason has to go
            raise
        hardening.start()
        _say(hardening.verdict())
        return hardening

    def _warm_up(self) -> None:
        try:
            warm_up(self.config.codec, self._tier)
        except PageDamaged as error:
            trouble = f"backing={self.config.backing}: what is written there does not come back ({error})"
            if not self.device.store.statistics.stored_pages:
                raise EnvironmentProblem(f"{trouble}; give another disk") from None
            _say(f"WARNING: {trouble}; going on, with the pages that a predecessor left")

    def abandon(self) -> None:
        """After a refusal: as if nothing had been begun. Whatever threads there are end with the process."""
        if self._control:
            self._control.close()
        if self._tier:
            self._tier.abandon()

    def stop(self) -> None:
        """Let flights land and close everything. nbdkit has ended all connections."""
        if self._control:
            self._control.close()
        if self._upkeep:
            self._upkeep.stop()
        self.device.store.close()
        if self._hardening:
            self._hardening.close()


def scratch_device() -> Device:
    """A small device over a store of its own."""
    store = Store(budget_bytes=MIN_BUDGET_BYTES, codec=parse_codec("lz4"))
    return Device(store, store.tmem.new_object(store.tmem.new_pool(Kind.PERSISTENT), 0, 64))


def _say(line: str) -> None:
    sys.stderr.write(f"zcache: {line}\n")
    sys.stderr.flush()
