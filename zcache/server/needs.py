"""What a server needs of the machine beside its budget, and whether what the process inherited, and
the control groups that it is in, leave room for that.
"""

from typing import Final

from zcache.errors import BadInput
from zcache.hardening import limits
from zcache.linux import meminfo
from zcache.linux.group_limits import GroupLimits
from zcache.server.assembly import geometry_of
from zcache.server.config import Config

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

#: What one server counts for under strict overcommit, beside its image and budget: asked for once,
#: for its heir or what replaces it. It is counted itself by then, but for 4 to 9 MiB. Measured on
#: the host (2026-11-29): 18.2 MiB at the check and 21.9 when it serves, an heir 18.2; without a
#: keeper 12.6 and 20.8.
PROMISED_BYTES: Final = 25 << 20


#: What engines add to that: modules, connections, what is to be removed there or is on its way, and
#: the kernel's buffers for sockets. Measured on the host (2026-11-30) with two engines: 8 MiB more
#: are locked with two copies, 9 with one, 10 with TLS.
REMOTE_BYTES: Final = 12 << 20


def check_limits(config: Config, is_successor: bool, client_threads: int) -> None:
    """Whether what the process inherited leaves room for what is configured; raises `BadInput`. A
    successor does not refuse: the pages are here already."""
    if is_successor:
        return
    store_bytes, tables_bytes = _store_bytes(config)
    remote_bytes = REMOTE_BYTES if config.remote else 0
    is_kept = config.image is not None
    files = {"the image, which keeps the pages": store_bytes} if is_kept or meminfo.is_overcommit_strict() else {}
    if config.backing:
        files[f"backing={config.backing}"] = config.below_bytes + config.frame_bytes
    limits.check(
        mapped_bytes=store_bytes + OWN_BYTES + remote_bytes,
        private_bytes=OWN_BYTES + remote_bytes + (0 if is_kept else store_bytes),
        files=files,
        more=len(config.clean) + _connections(config),
    )
    limits.check_promise(
        config.min_budget_bytes + tables_bytes + PROMISED_BYTES + remote_bytes, "or give a smaller budget"
    )
    limits.check_groups(
        {
            "budget": config.min_budget_bytes,
            "tables": tables_bytes,
            "server": max(EXACT_OWN_BYTES - limits.private_bytes(), 0),
            "room to serve in": SERVING_BYTES,
            **({"engines": REMOTE_BYTES} if config.remote else {}),
            **({"standby": STANDBY_BYTES} if is_kept else {}),
        },
        "or give a smaller budget or size",
    )
    limits.check_tasks(thread_count(config, client_threads) + (2 if is_kept else 0), "for the server and its clients")


def check_available(config: Config, is_successor: bool) -> None:
    """Whether there is RAM for the budget now; raises `BadInput`. A successor finds its own in RAM,
    and none to spare beside it."""
    available_bytes = meminfo.read_bytes("MemAvailable")
    own_bytes = OWN_BYTES + (REMOTE_BYTES if config.remote else 0)
    if not is_successor and config.min_budget_bytes + own_bytes > available_bytes:
        raise BadInput(
            f"budget={config.min_budget_bytes}: {available_bytes} bytes of RAM can be had now, and all of that "
            "is locked at the start; give less, or free memory"
        )


def thread_count(config: Config, client_threads: int) -> int:
    """How many threads the server will have beside its first: log, reclaim, end, upkeep, breath;
    what is only there if it is asked for; and those of clients."""
    optional = (
        config.allocator == "log",
        config.control is not None,
        config.image is not None,
        bool(config.remote),  # the mender
        config.remote_frames > 0,  # the demoter
    )
    return 5 + sum(optional) + client_threads


def kept_free(config: Config) -> int:
    """Of each control group's limit, in bytes: what else the server may need, and is not to give to
    its budget."""
    _, tables_bytes = _store_bytes(config)
    remote_bytes = REMOTE_BYTES if config.remote else 0
    return SERVING_BYTES + remote_bytes + tables_bytes + (STANDBY_BYTES if config.image is not None else 0)


def tight_groups(groups: GroupLimits | None) -> list[str]:
    """Those that leave less than half of what a fixed budget was started with, in words."""
    return [
        f"{room.in_words()}, and leaves {room.available >> 20}: at its limit the kernel ends programs there; "
        "raise it, or end some yourself"
        for room in (groups.rooms() if groups else ())
        if room.available < SERVING_BYTES // 2
    ]


def _store_bytes(config: Config) -> tuple[int, int]:
    """Of a store as it is to be at least, and of its tables alone."""
    frames_below = config.remote_frames + config.below_bytes // config.frame_bytes
    sections = geometry_of(config, frames_below).sections()
    store_bytes = sum(sections.values())
    return store_bytes, store_bytes - sections["ram"]


def _connections(config: Config) -> int:
    """To engines. How many primaries a Cluster has is not known yet: it counts as three at
    least."""
    if not config.remote:
        return 0
    from zcache.remote.peer import READERS  # nothing of it is loaded where there are no engines

    return max(len(config.remote), 3) * (READERS + 2)
