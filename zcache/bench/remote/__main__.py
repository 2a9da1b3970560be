"""`scripts/bench remote [frames] [node]`: a cold frame from an engine, beside one from a disk.

`frames`: a frame of 64 KiB, at random, from an engine over a Unix socket, over loopback, and
through a relay that adds 0.2 ms and 1 ms to each round trip; from a file on this machine's own
disk; and from one on a disk of 3,000 operations a second and 0.7 ms a read, which is injected. One
at a time, by eight threads, and in batches of eight in a row. Whatever is compared takes turns,
round by round; a figure is the median of its rounds. An engine is read by the tier, and by a
connection alone, which is the floor for it. Exit status 1: a read failed, or the disk of 3,000
operations was faster than the tier on loopback or at 0.2 ms.

`node`: what an engine pays for a frame, in memory and in CPU; and how many second copies one
machine makes again a second, when an engine has lost them.

`baseline`: from an engine, and from a RAM disk over the kernel's nbd client, in a guest (a minute
or two more).

`--faults` (with options of its own, see `--faults --help`): engines that fail under load.

`--plan` (with options of its own, see `--plan --help`): what nodes and links carry, on paper.
"""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
from rich.console import Console

from zcache.bench.remote import baseline, faults, mirroring, node, plan
from zcache.bench.remote.engines import PINGS, Relay, Server, engine, ping_seconds, relay_adding
from zcache.bench.remote.reading import Found, Way, fill, read
from zcache.bench.remote.slow_disk import SlowDisk
from zcache.bench.remote.sources import Bare, Source, backing_file, remote_tier
from zcache.bench.report import Figure, Report
from zcache.testvm.arguments import whole_number

TABLES: Final = ("frames", "node", "baseline")
#: One at a time; and 8 under way, as threads (each waits for its own) or as one request (which may
#: be a pipeline).
WAYS: Final = (Way(1, 1), Way(8, 1), Way(1, 8))
#: What a relay adds to a round trip: a rack's, and a building's.
ROUND_TRIPS_SECONDS: Final = (0.0002, 0.001)
#: A disk as clouds sell it.
DISK_OPERATIONS_PER_SECOND: Final = 3_000
DISK_READ_SECONDS: Final = 0.0007
SLOW_DISK: Final = "3,000/s, 0.7 ms"
TIER: Final = "tier"
#: From where a frame has to come faster than from that disk.
MUST_WIN: Final = ("loopback", "0.2 ms")


class Cell(NamedTuple):
    """Where frames are, and who reads them."""

    place: str
    reader: str
    source: Source
    servers: Sequence[Server]


def main(words: Sequence[str]) -> int:
    """Prints the tables; exit status 1 if that disk was faster, or a read failed."""
    if "--plan" in words:
        return plan.main([word for word in words if word != "--plan"])
    if "--faults" in words:
        return faults.main([word for word in words if word != "--faults"])
    parser = argparse.ArgumentParser(prog="scripts/bench remote", description=__doc__)
    add = parser.add_argument
    add("tables", nargs="*", choices=[*TABLES, []], help=f"some of {', '.join(TABLES)} (default: all)")
    add("--frames", type=whole_number(64), default=1024, help="that each place has (%(default)s)")
    add("--seconds", type=whole_number(), default=1, help="of each measurement (%(default)s)")
    add("--rounds", type=whole_number(), default=5, help="the median of so many (%(default)s)")
    add("--seed", type=int, default=1)
    add("--folder", type=Path, help="for the results (default: a new temporary one)")
    add("--disk", type=Path, help="a folder on the disk to use (default: a new temporary one)")
    add("--faults", action="store_true", help="engines that fail instead: see --faults --help")
    add("--plan", action="store_true", help="arithmetic instead: see --plan --help")
    arguments = parser.parse_args(words)
    report = Report(arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-")), Console(width=170))
    wanted = arguments.tables or TABLES
    is_good = True
    with tempfile.TemporaryDirectory(prefix="zcache-remote-", dir=arguments.disk) as name:
        if "node" in wanted:
            report.table("memory", "an engine's memory for each frame, bytes", node.memory(Path(name)))
            report.table("node", "an engine's CPU for each frame of 64 KiB", node.cpu(Path(name), arguments.seconds))
            rows = mirroring.measure(Path(name), 4 * arguments.frames, ROUND_TRIPS_SECONDS)
            report.table("mirroring", "second copies made again by one machine, in spare time", rows)
        if "baseline" in wanted:
            title = "a guest reads frames of 64 KiB over its network card, from memory of the host"
            report.table("baseline", title, baseline.measure(arguments.frames, arguments.seconds, arguments.rounds))
        if "frames" in wanted:
            is_good = _frames(report, Path(name), arguments)
    report.save()
    report.console.print(f"report.json: {report.folder}")
    return 0 if is_good else 1


def _frames(report: Report, folder: Path, arguments: argparse.Namespace) -> bool:
    found: dict[tuple[str, str, Way], list[Found]] = {}
    with _cells(report, folder, arguments.frames) as cells:
        for cell in cells:
            fill(cell.source, arguments.frames)
        before = psutil.cpu_times()
        for turn in range(arguments.rounds):
            for cell in reversed(cells) if turn % 2 else cells:
                for way in WAYS:
                    figures = read(
                        cell.source, arguments.frames, way, arguments.seconds, arguments.seed + turn, cell.servers
                    )
                    found.setdefault((cell.place, cell.reader, way), []).append(figures)
            report.console.print(f"round {turn + 1} of {arguments.rounds}")
        report.console.print(f"the hypervisor took {_stolen(before, psutil.cpu_times()):.1%} of the processors' time")
        medians = {name: of_all(rounds) for name, rounds in found.items()}
    rows = [_row(*name, medians) for name in sorted(medians, key=lambda name: WAYS.index(name[2]))]
    title = (
        f"a cold frame of 64 KiB, of {arguments.frames} at random, {arguments.rounds} rounds of {arguments.seconds} s; "
        f"at the end: how many times faster than the disk of {SLOW_DISK}"
    )
    report.table("frames", title, rows)
    return not any(each.failed for each in medians.values()) and all(
        faster >= 1
        for (place, reader, way) in medians
        for faster in _times_faster(medians[place, reader, way], medians[SLOW_DISK, TIER, way])
        if place in MUST_WIN and reader == TIER
    )


@contextlib.contextmanager
def _cells(report: Report, folder: Path, frame_count: int) -> Iterator[list[Cell]]:
    """All places, for as long as they are measured."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(engine(folder))
        unix, tcp = server.addresses
        port = int(tcp.sockaddr[1])
        relays = [stack.enter_context(relay_adding(folder, port, seconds)) for seconds in ROUND_TRIPS_SECONDS]
        report.table("relays", "what the relays add to a PING, us", _relay_rows(server, relays))
        places: list[tuple[str, Any, Sequence[Server]]] = [("Unix socket", unix, [server]), ("loopback", tcp, [server])]
        for seconds, each in zip(ROUND_TRIPS_SECONDS, relays, strict=True):
            places.append((f"{seconds * 1000:g} ms", each.server.addresses[0], [server, each.server]))
        cells = []
        for place, address, servers in places:
            tier = stack.enter_context(contextlib.closing(remote_tier([address], frame_count)))
            bare = stack.enter_context(contextlib.closing(Bare(address, max(way.threads for way in WAYS))))
            cells += [Cell(place, TIER, tier, servers), Cell(place, "connection", bare, servers)]
        disk = stack.enter_context(backing_file(folder, frame_count))
        slow = SlowDisk(disk, DISK_OPERATIONS_PER_SECOND, DISK_READ_SECONDS)
        own = "own disk" if disk.direct else "own disk (no O_DIRECT)"
        yield [*cells, Cell(own, TIER, disk, []), Cell(SLOW_DISK, TIER, slow, [])]


def _relay_rows(server: Server, relays: Sequence[Relay]) -> list[dict[str, Figure]]:
    direct = ping_seconds(server.addresses[1], PINGS)[1] * 1e6
    return [
        {
            "to be added": seconds * 1e6,
            "waits": each.delay_seconds * 1e6,
            "PING on loopback": direct,
            "through it": direct + each.added_seconds * 1e6,
            "added, undisturbed": each.least_added_seconds * 1e6,
            "added, median": each.added_seconds * 1e6,
        }
        for seconds, each in zip(ROUND_TRIPS_SECONDS, relays, strict=True)
    ]


def _stolen(before: Any, after: Any) -> float:
    """Of `psutil.cpu_times`: which share of what was wanted went to others. It makes p99 what it
    is."""
    idle = after.idle + after.iowait - before.idle - before.iowait
    return float((after.steal - before.steal) / max(sum(after) - sum(before) - idle, 0.01))


def of_all(rounds: Sequence[Found]) -> Found:
    """The medians; but the longest, and all that failed."""
    medians = Found(*map(statistics.median, zip(*rounds, strict=True)))
    longest_us, failed = max(each.longest_us for each in rounds), sum(each.failed for each in rounds)
    return medians._replace(longest_us=longest_us, failed=failed)


def _times_faster(found: Found, than: Found) -> tuple[float, float]:
    """At p50 and p99."""
    return than.p50_us / found.p50_us, than.p99_us / found.p99_us


def _row(place: str, reader: str, way: Way, medians: dict[tuple[str, str, Way], Found]) -> dict[str, Figure]:
    found = medians[place, reader, way]
    p50, p99 = _times_faster(found, medians[SLOW_DISK, TIER, way])
    return {
        "under way": way.name,
        "from": place,
        "by": reader,
        "p50, us": found.p50_us,
        "p99, us": found.p99_us,
        "longest": found.longest_us,
        "failed": round(found.failed),
        "frames/s": found.frames_per_second,
        "own CPU, us": found.own_us,
        "engine's": found.engine_us or None,
        "relay's": found.relay_us or None,
        "p50: times faster": p50,
        "p99": p99,
    }
