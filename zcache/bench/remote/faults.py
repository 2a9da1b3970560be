"""`scripts/bench remote --faults`: engines that die, hang, are cut off, slow or full, under load.

For each scene a server over real engines, whose budget holds a part of its pages; one client writes
and one reads all along. An engine fails, stays so for some seconds, and is mended; when each frame
has two copies again, another engine fails, so that what was made again is what is read. At the end
every page is read once. No page may be lost or wrong, no operation may fail, and no read may take
longer than `BOUND_SECONDS`: the patience that a request has with what fails, and one try more. Exit
status 1: one of that was not so, or the server's books did not balance.

What is measured has the clients' own noise in it, and that of whatever else the machine does: p50
and p99.9 are of all reads of a scene, before, during and after its faults.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console

from zcache.bench.remote.failing_engines import FailingEngine, failing_engines, form_cluster, wait_until
from zcache.bench.remote.far_network import why_no_network
from zcache.bench.remote.load import PAGE_BYTES, Load
from zcache.bench.report import Figure, Report
from zcache.bench.served import Served, serve
from zcache.errors import EnvironmentProblem
from zcache.remote.mender import GONE_SECONDS, HEARTBEAT_SECONDS
from zcache.remote.reading import READ_SECONDS
from zcache.testvm.arguments import whole_number
from zcache.tiers.backoff import PATIENCE_SECONDS

#: Of a read.
BOUND_SECONDS: Final = PATIENCE_SECONDS + READ_SECONDS
SIZE_BYTES: Final = 64 << 20
BUDGET_BYTES: Final = 16 << 20
#: Of frames at engines: all that may be cold, or with a backing about half of it.
REMOTE_BYTES: Final = 96 << 20
REMOTE_BESIDE_BACKING_BYTES: Final = 24 << 20
#: Of the load before the first fault.
BEFORE_SECONDS: Final = 1.0
#: For two copies to be there again, of which `GONE_SECONDS` may be for a peer that stays away.
MENDED_SECONDS: Final = GONE_SECONDS + 60
#: A fault that is over sooner may not have been noticed when the next one begins.
LEAST_FAULT_SECONDS: Final = int(HEARTBEAT_SECONDS) + 1
#: Of a relay that is slow: twice what the copy that is asked first has time for.
SLOW_SECONDS: Final = 0.1


class Fault(NamedTuple):
    """How one engine fails, and how it is mended; `end` None: it is not, while the scene lasts."""

    begin: Callable[[FailingEngine], None]
    end: Callable[[FailingEngine], None] | None


class Way(NamedTuple):
    """How frames are kept: `remote_copies`, and whether there is a backing."""

    copies: int
    has_backing: bool

    @property
    def name(self) -> str:
        return f"{self.copies}, backing" if self.has_backing else f"{self.copies}"


class Scene(NamedTuple):
    """Faults of engines (by their number), one after the other; `replicas` of each of them as
    primaries of a Cluster, None: they stand alone."""

    name: str
    steps: Sequence[tuple[Fault, int]]
    ways: Sequence[Way]
    engines: int = 2
    replicas: int | None = None
    is_far: bool = False
    has_relay: bool = False


def _nothing(_: FailingEngine) -> None:
    """It has mended itself."""


KILL: Final = Fault(FailingEngine.kill, FailingEngine.start)
KILL_FOR_GOOD: Final = Fault(FailingEngine.kill, None)
RESTART: Final = Fault(FailingEngine.restart, _nothing)
PAUSE: Final = Fault(FailingEngine.pause, FailingEngine.resume)
CUT: Final = Fault(FailingEngine.cut, FailingEngine.join)
SILENCE: Final = Fault(FailingEngine.silence, FailingEngine.speak)
SLOW: Final = Fault(lambda engine: engine.delay(SLOW_SECONDS), lambda engine: engine.delay(0.0))
FULL: Final = Fault(FailingEngine.fill_up, FailingEngine.make_room)
FAIL_OVER: Final = Fault(FailingEngine.kill, FailingEngine.start_as_replica)
FAIL_BACK: Final = Fault(FailingEngine.fail_back, _nothing)

TWO, TWO_AND_BACKING, ONE_AND_BACKING = Way(2, False), Way(2, True), Way(1, True)
EACH_WAY: Final = (TWO, TWO_AND_BACKING, ONE_AND_BACKING)

SCENES: Final = (
    Scene("kill", [(KILL, 0), (KILL, 1)], EACH_WAY),
    Scene("pause", [(PAUSE, 0), (PAUSE, 1)], EACH_WAY),
    Scene("cut-off", [(CUT, 0), (CUT, 1)], EACH_WAY, is_far=True),
    Scene("silent-relay", [(SILENCE, 0), (SILENCE, 1)], (TWO,), has_relay=True),
    Scene("restart-empty", [(RESTART, 0), (RESTART, 1)], (TWO, ONE_AND_BACKING)),
    Scene("slow", [(SLOW, 0), (SLOW, 1)], (TWO, ONE_AND_BACKING), has_relay=True),
    Scene("full", [(FULL, 0), (FULL, 1)], (TWO, TWO_AND_BACKING)),
    Scene("two-of-three", [(KILL_FOR_GOOD, 0), (KILL_FOR_GOOD, 1)], (TWO,), engines=3),
    Scene("node-kill", [(KILL, 0), (KILL, 1)], (TWO, ONE_AND_BACKING), engines=3, replicas=0),
    Scene("node-pause", [(PAUSE, 0), (PAUSE, 1)], (TWO,), engines=3, replicas=0),
    Scene("node-cut-off", [(CUT, 0), (CUT, 1)], (TWO,), engines=3, replicas=0, is_far=True),
    Scene("failover", [(FAIL_OVER, 0), (FAIL_OVER, 1)], (TWO,), engines=3, replicas=1),
    Scene("failback", [(FAIL_OVER, 0), (FAIL_BACK, 0), (FAIL_OVER, 1)], (TWO,), engines=3, replicas=1),
)


class Run:
    """One scene, with frames kept in one way, from the first start to the last look."""

    def __init__(self, scene: Scene, way: Way, folder: Path, log: Path, fault_seconds: float, seed: int) -> None:
        self._scene, self._way, self._folder, self._log = scene, way, folder, log
        self._fault_seconds = fault_seconds
        self._seed = seed
        self._mended_seconds: list[float] = []
        self.complaints: list[str] = []

    def run(self) -> dict[str, Figure]:
        """The table's row."""
        with self._engines() as engines, serve(self._log, *self._words(engines)) as served:
            load = Load(served, SIZE_BYTES // PAGE_BYTES, self._seed)
            load.fill()
            with load.running():
                time.sleep(BEFORE_SECONDS)
                gone = 0
                for fault, number in self._scene.steps:
                    gone += fault.end is None
                    self._fail(served, fault, engines[number], gone)
            load.verify()
            status, check = served.ask("status"), served.ask("check")
        return self._row(load, status, check)

    def _fail(self, served: Served, fault: Fault, engine: FailingEngine, gone: int) -> None:
        fault.begin(engine)
        time.sleep(self._fault_seconds)
        if fault.end:
            fault.end(engine)
        begin = time.monotonic()
        if gone > 1:  # there are no two engines for two copies
            return
        if wait_until(lambda: self._is_whole(served, gone), MENDED_SECONDS):
            self._mended_seconds.append(time.monotonic() - begin)
        else:
            status = served.ask("status")
            self.complaints.append(f"not as before within {MENDED_SECONDS:g} s: {'; '.join(status['reasons'])}")

    def _is_whole(self, served: Served, gone: int) -> bool:
        """Whether every engine is there that is to be, and each frame is at two of them."""
        status = served.ask("status")
        peers = [peer for peer in status["remote_peers"] if peer["is_up"]]
        if len(peers) != len(status["remote_peers"]) - gone:
            return False
        copies = sum(int(peer["frames"]) for peer in peers)
        return self._way.copies == 1 or copies == 2 * int(status["remote_frames"])

    @contextlib.contextmanager
    def _engines(self) -> Iterator[list[FailingEngine]]:
        scene, is_cluster = self._scene, self._scene.replicas is not None
        count = scene.engines * (1 + (scene.replicas or 0))
        options = {"is_far": scene.is_far, "has_relay": scene.has_relay, "is_cluster": is_cluster}
        with failing_engines(self._folder, count, **options) as engines:
            if is_cluster:
                form_cluster(engines, scene.engines)
            yield engines

    def _words(self, engines: Sequence[FailingEngine]) -> list[str]:
        """The server's."""
        named = engines if self._scene.replicas is None else engines[:1]
        words = [f"size={SIZE_BYTES}", f"budget={BUDGET_BYTES}", f"remote_copies={self._way.copies}"]
        words += [f"remote={engine.url}" for engine in named]
        if self._way.has_backing:
            words.append(f"backing={self._folder / 'backing'}")
        return [*words, f"remote_budget={REMOTE_BESIDE_BACKING_BYTES if self._way.has_backing else REMOTE_BYTES}"]

    def _row(self, load: Load, status: dict[str, Any], check: dict[str, Any]) -> dict[str, Figure]:
        reads = sorted(load.read_seconds)
        longest = reads[-1]
        lost = max(int(status["remote_lost_frames"]), int(check.get("lost_pages", 0)))
        self.complaints += load.complaints
        if longest > BOUND_SECONDS:
            self.complaints.append(f"a read took {longest:.3f} s, and may take {BOUND_SECONDS:g}")
        if lost:
            self.complaints.append(f"{lost} frames or pages are lost")
        if not check["balanced"]:
            self.complaints.append(f"the books do not balance: {check}")
        if "Traceback" in self._log.read_text(errors="replace"):
            self.complaints.append(f"the server's log has a traceback: {self._log}")
        return {
            "scene": self._scene.name,
            "copies": self._way.name,
            "reads": len(reads),
            "p50, ms": reads[len(reads) // 2] * 1e3,
            "p99.9": reads[int(len(reads) * 0.999)] * 1e3,
            "longest read": longest * 1e3,
            "longest write": max(load.write_seconds, default=0.0) * 1e3,
            "wrong pages": load.wrong,
            "failed reads": load.failed_reads,
            "failed writes": load.failed_writes,
            "lost frames": lost,
            "hedged": int(status["remote_hedged_gets"]),
            "made again": int(status["remirrored_frames"]),
            "s until two copies": max(self._mended_seconds, default=None) if self._way.copies == 2 else None,
        }


def main(words: Sequence[str]) -> int:
    """Prints the table; exit status 1 if something was lost, wrong, failed or too late."""
    parser = argparse.ArgumentParser(prog="scripts/bench remote --faults", description=__doc__)
    add = parser.add_argument
    names = [scene.name for scene in SCENES]
    add("--seconds", type=whole_number(LEAST_FAULT_SECONDS), default=3, help="that each fault stays (%(default)s)")
    add("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    add("--seed", type=int, default=1)
    add("--folder", type=Path, help="for the results (default: a new temporary one)")
    arguments = parser.parse_args(words)
    report = Report(arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-")), Console(width=190))
    wanted = [scene for scene in SCENES if scene.name in (arguments.only or names)]
    is_good = measure(report, wanted, arguments.seconds, arguments.seed)
    report.save()
    report.console.print(f"report.json, and the servers' logs: {report.folder}")
    return 0 if is_good else 1


def measure(report: Report, scenes: Sequence[Scene], fault_seconds: float, seed: int) -> bool:
    """A table; whether all was as it should be."""
    rows, is_good = [], True
    for scene in scenes:
        if scene.is_far and (why := why_no_network()):
            report.console.print(f"{scene.name}: NOT run: {why}")
            continue
        for way in scene.ways:
            begin = time.monotonic()
            name = f"{scene.name}, copies {way.name}"
            log = report.folder / f"{scene.name}-{way.copies}{'-backing' * way.has_backing}.log"
            with tempfile.TemporaryDirectory(prefix="zcache-faults-") as folder:
                run = Run(scene, way, Path(folder), log, fault_seconds, seed)
                try:
                    rows.append(run.run())
                except (EnvironmentProblem, OSError) as error:
                    run.complaints.append(str(error))
            report.console.print(f"{name}: {time.monotonic() - begin:.0f} s{', BAD' * bool(run.complaints)}")
            for complaint in run.complaints:
                report.console.print(f"    {complaint}", markup=False)
            is_good &= not run.complaints
    if rows:
        title = (
            f"engines that fail for {fault_seconds:g} s, one after the other, under load; ms; a read may take "
            f"{BOUND_SECONDS * 1e3:,.0f}"
        )
        report.table("faults", title, rows)
    return is_good
