"""Assembly: the parts of a server, made for one `Config`, over the image that there is, if any."""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from zcache.allocators.choice import ALLOCATORS
from zcache.budget.breathing import Breathing
from zcache.budget.budget import Budget
from zcache.budget.pressure import PressureGauge
from zcache.clean.disk_file import DiskFile
from zcache.clock import Clock
from zcache.control.listener import rehearse
from zcache.control.settings import Settings
from zcache.control.status import gather_status
from zcache.errors import EnvironmentProblem, Imbalance, PageDamaged
from zcache.hardening import limits
from zcache.image.image import SECRET_BYTES, Geometry, Image, check_header, read_header
from zcache.image.signs import Signs
from zcache.linux.group_limits import GroupLimits, Room
from zcache.pageframes.slots import slots_of
from zcache.pages.entry import PAGE_BYTES
from zcache.pages.tmem import Kind, TmemObject
from zcache.reclaim.flight import flights_frames
from zcache.seals import Seal
from zcache.seals.crc import CRC
from zcache.server.config import Config
from zcache.server.rebuild import rebuild
from zcache.server.warm_up import scratch_store, warm_up
from zcache.steps import Steps
from zcache.store.store import Store
from zcache.tiers import Tier
from zcache.tiers.backing_file import BackingFile

if TYPE_CHECKING:
    from zcache.clean.clean_disk import CleanDisk
    from zcache.server.files import Files
    from zcache.server.remote_place import RemotePlace

#: No more frames than pages need are alive, whatever the size of the backing device; this is for
#: what dies in flight.
SPARE_BYTES: Final = 4 << 20

#: How the kernel says that memory cannot be populated: for want of it, or of a promise of it.
NO_MEMORY: Final = frozenset({errno.ENOMEM, errno.EFAULT, errno.ENOSPC})

#: Names of protections to leave out, separated by commas: how `scripts/bench ablation` shows what
#: each is for.
WITHOUT_VARIABLE: Final = "ZCACHE_WITHOUT"


def left_out() -> set[str]:
    """What it names."""
    return {name for name in os.environ.get(WITHOUT_VARIABLE, "").split(",") if name}


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
        remote_slots=remote_slots(config, frames_below),
    )


def remote_slots(config: Config, frames_below: int) -> int:
    """Of how many frames engines may hold copies: of their own, or of all that are on the
    backing."""
    return (config.remote_frames or frames_below) if config.remote else 0


def check_succession(config: Config) -> None:
    """Whether this version can go on with the image that there is, if any; raises
    `EnvironmentProblem`."""
    if config.image is not None and config.is_succession:
        check_header(read_header(config.image), geometry_of(config, frames_below(config, config.image)))


def frames_below(config: Config, image: int) -> int:
    """How many slots a predecessor had below: as many as the image has frames for beyond the
    budget's."""
    count: int = read_header(image)["frame_count"] - config.budget_frames
    return count


def look_at_groups(config: Config) -> GroupLimits | None:
    """The limits of control groups, before the file system is given up; what is open, an heir
    has, too.

    None for a successor that starts while nobody serves: to look at mounts and groups takes
    locks of the kernel's, which may be held by somebody who waits for memory, and that for us.
    """
    if not config.is_succession:
        return GroupLimits()
    with contextlib.suppress(Exception):  # a successor goes on without
        if Signs(config.image or 0).is_served():
            return GroupLimits()
    return None


def open_image(config: Config, backing: BackingFile | None) -> Image | None:
    """The one that the keeper gives, laid out for this configuration if it is empty."""
    if config.image is None:
        return None
    slots_below = config.remote_frames + (backing.slot_count if backing else 0)
    return Image.open(config.image, geometry_of(config, slots_below))


def make_store(
    config: Config,
    tiers: Sequence[Tier],
    image: Image | None,
    secret: bytes,
    steps: Steps,
    beat: Callable[[], None],
    report: Callable[[str], None],
) -> tuple[Store, TmemObject]:
    """A store and the object whose pages are the device's: empty, or as a predecessor left them.
    `beat` is called as long as there is progress, `report` is told what is worth a line.

    Raises `EnvironmentProblem` for what no predecessor can have left.
    """
    seal = new_seal(config, secret)
    store = Store(
        budget_bytes=config.budget_bytes,
        codec=config.codec,
        allocator=config.allocator,
        recompress=config.recompress,
        admit=config.admit,
        tiers=tiers,
        seal=seal,
        image=image,
    )
    pool = store.tmem.new_pool(Kind.PERSISTENT)
    pages = store.tmem.new_object(pool, 0, config.size_bytes // PAGE_BYTES, image.section("entries") if image else None)
    if image and image.epoch > 1:
        begin = time.monotonic()
        try:
            steps.begin("taking over the pages")
            rebuild(store, pages, beat)
        except Imbalance as imbalance:
            raise EnvironmentProblem(f"what the last server left does not fit together: {imbalance}") from None
        report(
            f"server number {image.epoch} of this swap: {store.statistics.stored_pages} pages taken over "
            f"in {time.monotonic() - begin:.1f} s"
        )
    return store, pages


def make_remote_place(config: Config, files: "Files", report: Callable[[str], None]) -> "RemotePlace | None":
    """The engines that there are to be, of which none is known yet."""
    if not config.remote:
        return None
    from zcache.server.remote_place import RemotePlace  # locked in memory, where there are engines

    return RemotePlace(config, files, report)


def make_clean_disks(config: Config, files: Sequence[DiskFile], store: Store) -> list["CleanDisk"]:
    """Over the files of clean exports, in the order of the configuration."""
    if not config.clean:
        return []
    from zcache.clean.clean_disk import CleanDisk  # locked in memory, where there are any

    pool = store.tmem.new_pool(Kind.EPHEMERAL)
    return [
        CleanDisk(export.name, file, export.read_only, store, pool)
        for export, file in zip(config.clean, files, strict=True)
    ]


def make_budget(
    config: Config,
    store: Store,
    signs: Signs | None,
    groups: GroupLimits | None,
    kept_bytes: int,
    report: Callable[[str], None],
) -> tuple[Breathing, Settings]:
    """As it was begun, or as a predecessor was told, and left it. `kept_bytes` are those of each
    control group's limit that the budget leaves alone; without `groups` it does not grow."""

    def rooms() -> list[Room]:
        """What control groups leave beside what they must keep."""
        found = groups.rooms() if groups else ()
        return [room._replace(available=max(room.available - kept_bytes, 0)) for room in found]

    budget = new_budget(store, config.min_budget_frames, signs.note_budget if signs else None)
    if not config.overcommit:
        below_frames = store.below.slot_count
        budget.least_frames = max(budget.least_frames, config.needed_frames - below_frames)
    budget.min_frames = min(max(budget.min_frames, budget.least_frames), store.frames.max_budget_frames)
    settings = Settings(store, budget, signs, rooms)
    settings.take_over()
    budget.begin(signs.budget_frames if signs else 0)
    if groups is None and budget.min_frames < budget.max_frames:
        budget.max_frames = max(budget.min_frames, store.frames.budget_frames)
        report("the budget does not grow now: the limits of control groups are not known; swap-upgrade looks at them")
    clock = Clock()
    gauge = PressureGauge(clock, groups=groups)
    return Breathing(store, budget, gauge, clock, reserve_bytes=kept_bytes, report=report), settings


def new_budget(store: Store, min_frames: int, changed: Callable[[int], None] | None = None) -> Budget:
    """Of a store, with so many frames at least."""
    budget = Budget(
        store.frames, store.reclaimer, store.lock, store.statistics, min_frames, changed or (lambda _: None)
    )
    budget.least_frames = ALLOCATORS[store.allocator.name].min_budget_frames
    return budget


def new_seal(config: Config, key: bytes) -> Seal:
    """What frames leave RAM under, with that key."""
    if not config.encrypt:
        return CRC
    from zcache.seals.aead import Aead  # a library that nobody should lock in memory without need

    return Aead(key, config.frame_bytes, flights_frames(config.frame_bytes))


def trial_seal(config: Config) -> Seal:
    """Like the store's, with a key of its own."""
    return new_seal(config, os.urandom(SECRET_BYTES))


def run_everything(config: Config, backing: BackingFile | None, seal: Seal) -> None:
    """All code once, with the backing, which is tried by that. Raises `EnvironmentProblem`."""
    try:
        warm_up(config.codec, config.allocator, config.recompress, backing, seal)
    except PageDamaged as error:
        trouble = f"backing={config.backing}: what is written there does not come back ({error})"
        raise EnvironmentProblem(f"{trouble}; give another disk") from None


def populate(config: Config, store: Store, beat: Callable[[], None], is_successor: bool) -> None:
    """A budget that there is no memory for is none; but a successor goes on with what it has."""
    try:
        store.populate(beat)
    except OSError as error:
        if error.errno not in NO_MEMORY or is_successor:
            raise
        trouble = f"budget={config.min_budget_bytes}: there is no memory for it"
        raise EnvironmentProblem(f"{trouble}: {limits.in_words(MemoryError())}") from None


def rehearse_control(allocator: str) -> None:
    """What the control socket is asked for, run once over a store of no consequence. (What that
    leaves is in cycles.)"""
    store, pages = scratch_store(allocator)
    settings = Settings(store, new_budget(store, 1), None)
    rehearse(store, lambda: gather_status(store, pages, {}), settings)
