"""`scripts/bench remote --plan`: how many machines some engines carry, and what a node's death
costs then. Arithmetic; each figure can be given.

A node is an engine on a machine of its own, with a link. All nodes but one have to carry all
frames, so that one may die (one node alone: it carries them, and its death is everybody's). Frames
are spread evenly. Reads are of one copy; writes, and the removal of what was written before, of
all. A link carries its speed in each direction, less Ethernet's, IP's and TCP's own bytes.

What nodes that are nearly busy do to latency is not in it: at 70 % of its CPU, an engine's queue
doubles a read. Size for less than what is shown as fitting.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console

from zcache.bench.report import Figure, Report
from zcache.testvm.arguments import whole_number

GIB: Final = 1 << 30
#: Bytes on an Ethernet link for each byte of a stream, in packets of 1,500 bytes: of 1,538 (with
#: preamble and gap), 1,448 are the stream's.
WIRE_RATIO: Final = 1538 / 1448


class Site(NamedTuple):
    """Nodes, all alike, and what they keep. The defaults that are not a choice were measured by
    `scripts/bench remote node` on 2026-11-30: Redis 7.0.15 on a virtual machine with two CPUs
    (beside other load, reads were 15,000 to 29,000), 64 KiB frames over loopback TCP; memory is
    RSS. Mirroring, on 2026-12-01, came to 1,000 to 1,240 frames with 0.2 ms of delay."""

    nodes: int = 3
    node_memory_bytes: float = 64 * GIB
    node_reads_per_second: float = 27_000
    node_writes_per_second: float = 22_000
    link_bits_per_second: float = 10e9
    frame_bytes: float = 65_520
    copies: int = 2
    bytes_paid_ratio: float = 1.07
    mirrored_per_second: float = 1_000  # frames, by one machine, in spare time, 0.2 ms away
    mirror_share: float = 0.25  # of links and engines, that mirroring may take


class Load(NamedTuple):
    """One machine's."""

    name: str
    remote_bytes: float
    reads_per_second: float
    writes_per_second: float


#: What was recorded (zcache/bench/RESULTS.md). stress-ng in a guest of 900 MiB: 3,070 frames below,
#: 1,509 read and 3,070 written in 97.7 s. A job whose arrays are five times its 512 MiB, touched at
#: random as fast as one thread can: each touch is a page from below, and one that leaves.
LOADS: Final = (
    Load("scripts/run: stress-ng in 900 MiB", 3070 * 65_536, 15.4, 31.4),
    Load("scripts/bench pager: 5 times 512 MiB", 723 << 20, 3961, 104),
)


class Death(NamedTuple):
    """Of one node."""

    frames: float  # whose second copy is gone
    mirrored_bytes: float
    traffic_bytes: float  # on links: out of one node, and into another
    seconds: float
    limited_by: str


def carriers(site: Site) -> int:
    """Nodes that have to carry everything."""
    return max(site.nodes - 1, 1)


def node_frames(site: Site) -> int:
    """That fit into one node."""
    return int(site.node_memory_bytes // (site.frame_bytes * site.bytes_paid_ratio))


def link_frames_per_second(site: Site) -> float:
    """Each way."""
    return site.link_bits_per_second / 8 / (site.frame_bytes * WIRE_RATIO)


def limits(site: Site, load: Load) -> dict[str, float]:
    """How many machines of that load each thing allows."""
    nodes = carriers(site)
    copies = min(site.copies, nodes)
    link = link_frames_per_second(site)
    reads, writes = load.reads_per_second, load.writes_per_second * copies
    busy = reads / site.node_reads_per_second + writes / site.node_writes_per_second
    return {
        "memory": nodes * node_frames(site) * site.frame_bytes / (load.remote_bytes * copies),
        "engine's CPU": nodes / busy if busy else math.inf,
        "link out": nodes * link / reads if reads else math.inf,
        "link in": nodes * link / writes if writes else math.inf,
    }


def machines_that_fit(site: Site, load: Load) -> tuple[int, str]:
    """How many, and what limits them."""
    found = limits(site, load)
    least = min(found, key=found.__getitem__)
    return int(found[least]), least


def death(site: Site, load: Load, machines: int) -> Death:
    """What it costs to have two copies of everything again: at the other nodes or, of two, at the
    one that takes its place. With one copy nothing is mirrored: the disks have it."""
    frames = machines * load.remote_bytes / site.frame_bytes * site.copies / site.nodes
    if site.copies == 1 or site.nodes == 1 or not machines:
        return Death(frames, 0, 0, 0, "nothing")
    nodes = carriers(site)
    rates = {
        "machines": machines * site.mirrored_per_second,
        "links": nodes * link_frames_per_second(site) * site.mirror_share,
        "engine's CPU": nodes * site.mirror_share / (1 / site.node_reads_per_second + 1 / site.node_writes_per_second),
    }
    least = min(rates, key=rates.__getitem__)
    mirrored_bytes = frames * site.frame_bytes
    return Death(frames, mirrored_bytes, 2 * mirrored_bytes * WIRE_RATIO, frames / rates[least], least)


def tabulate(report: Report, site: Site, loads: Sequence[Load], machines: int | None) -> None:
    """Three tables; `machines` are as many as fit, unless they are given."""
    link = link_frames_per_second(site)
    rows: list[dict[str, Figure]] = [
        _carried(site, "node's memory, frames", node_frames(site), node_frames(site)),
        _carried(site, "node's CPU, frames read a second", site.node_reads_per_second),
        _carried(site, "node's CPU, frames written a second", site.node_writes_per_second),
        _carried(site, "link, frames a second each way", link),
        _carried(site, "node: the lesser of CPU and link, reading", min(site.node_reads_per_second, link)),
    ]
    report.table("carried", "what one node carries", rows)
    copies = "one copy" if site.copies == 1 else f"{site.copies} copies"
    title = f"machines that {site.nodes} nodes carry, of which one may die; {copies}"
    report.table("machines", title, [_machines_row(site, load) for load in loads])
    deaths = [
        _death_row(site, load, machines_that_fit(site, load)[0] if machines is None else machines) for load in loads
    ]
    title = f"a node's death: second copies made again, with {site.mirror_share:.0%} of links and engines"
    report.table("death", title, deaths)


def _carried(site: Site, what: str, frames: float, kept: float | None = None) -> dict[str, Figure]:
    """In GiB: all that is kept, or each second."""
    return {"": what, "frames": round(frames), "GiB": (kept or frames) * site.frame_bytes / GIB}


def _machines_row(site: Site, load: Load) -> dict[str, Figure]:
    count, limited_by = machines_that_fit(site, load)
    allowed = {f"by {name}": each if each < math.inf else None for name, each in limits(site, load).items()}
    return {
        "load of a machine": load.name,
        "GiB": load.remote_bytes / GIB,
        "reads/s": load.reads_per_second,
        "writes/s": load.writes_per_second,
        **allowed,
        "machines": count,
        "limited by": limited_by,
    }


def _death_row(site: Site, load: Load, machines: int) -> dict[str, Figure]:
    found = death(site, load, machines)
    return {
        "load of a machine": load.name,
        "machines": machines,
        "frames lost there": round(found.frames),
        "GiB mirrored": found.mirrored_bytes / GIB,
        "GiB on links": found.traffic_bytes / GIB,
        "seconds": found.seconds,
        "limited by": found.limited_by,
    }


def main(words: Sequence[str]) -> int:
    """Prints the tables; exit status 0."""
    site = Site()
    parser = argparse.ArgumentParser(prog="scripts/bench remote --plan", description=__doc__)
    add = parser.add_argument
    number = _positive
    add("--nodes", type=whole_number(), default=site.nodes, help="engines, each on a machine (%(default)s)")
    add("--node-memory", type=number, default=site.node_memory_bytes / GIB, metavar="GIB", help="(%(default)s)")
    add("--node-frames-per-second", type=number, default=site.node_reads_per_second, help="read (%(default)s)")
    add("--node-write-frames-per-second", type=number, default=site.node_writes_per_second, help="(%(default)s)")
    add("--link-gbit", type=number, default=site.link_bits_per_second / 1e9, help="of a node, each way (%(default)s)")
    add("--frame-bytes", type=number, default=site.frame_bytes, help="of a value (%(default)s)")
    add("--copies", type=int, choices=(1, 2), default=site.copies, help="(%(default)s)")
    add("--bytes-paid-ratio", type=number, default=site.bytes_paid_ratio, help="memory for each byte (%(default)s)")
    add("--mirror-frames-per-second", type=number, default=site.mirrored_per_second, help="by a machine (%(default)s)")
    add("--mirror-share", type=number, default=site.mirror_share, help="of links and engines (%(default)s)")
    add("--machines", type=whole_number(), help="when a node dies (default: as many as fit)")
    add("--machine-memory", type=number, metavar="GIB", help="of one machine, remotely (default: recorded loads)")
    add("--machine-reads", type=number, default=15.0, metavar="N", help="of frames, a second (%(default)s)")
    add("--machine-writes", type=number, default=31.0, metavar="N", help="of frames, a second (%(default)s)")
    add("--folder", type=Path, help="for the results (default: a new temporary one)")
    given = parser.parse_args(words)
    site = Site(
        nodes=given.nodes,
        node_memory_bytes=given.node_memory * GIB,
        node_reads_per_second=given.node_frames_per_second,
        node_writes_per_second=given.node_write_frames_per_second,
        link_bits_per_second=given.link_gbit * 1e9,
        frame_bytes=given.frame_bytes,
        copies=given.copies,
        bytes_paid_ratio=given.bytes_paid_ratio,
        mirrored_per_second=given.mirror_frames_per_second,
        mirror_share=given.mirror_share,
    )
    own = given.machine_memory and Load("yours", given.machine_memory * GIB, given.machine_reads, given.machine_writes)
    report = Report(given.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-")), Console(width=150))
    tabulate(report, site, [own] if own else LOADS, given.machines)
    report.save()
    report.console.print(f"report.json: {report.folder}")
    return 0


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return number
