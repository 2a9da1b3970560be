"""The host's half of `scripts/run --remote`: two engines to hold frames, one of which is killed
half way; and what such a run has to show.

The engines are this machine's, at ports of its loopback, which the guest reaches over its network.
The killed one stays away. So from then on each frame that was at both is at one, and what leaves
RAM goes to the disk: two copies at one engine would be lost together.
"""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from zcache.bench.remote.engines import Server, engine
from zcache.bench.run.orders import taking_orders
from zcache.bench.run.whereabouts import plot
from zcache.testvm import HOST_ADDRESS

#: Instead of the usual ones, and as much together: frames leave early, and engines have not enough
#: room for all of them.
PARAMETERS: Final = ("budget=64M", "remote_budget=96M")
#: Of load: on a slow machine the budget is full after a minute.
LOAD_SECONDS: Final = 150
#: Of each engine: two copies of that, and what its allocator adds.
_ENGINE_SETTINGS: Final = "--maxmemory", "512mb"


@contextlib.contextmanager
def two_engines(load_seconds: float) -> Iterator[tuple[list[str], list[str]]]:
    """Options for the guest's half, and parameters for the server there."""
    with contextlib.ExitStack() as stack:
        servers: list[Server] = []
        for _ in range(2):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="zcache-engine-"))
            servers.append(stack.enter_context(engine(Path(folder), *_ENGINE_SETTINGS)))

        def obey(words: str) -> None:
            what, number = words.split()
            if what != "kill":
                raise ValueError(f"{what} is no order")
            os.kill(servers[int(number)].pid, signal.SIGKILL)

        port = stack.enter_context(taking_orders(obey))
        ports = [int(server.addresses[1].sockaddr[1]) for server in servers]
        options = ["--orders", str(port), "--kill-seconds", str(load_seconds / 2)]
        yield options, [f"remote=redis://{HOST_ADDRESS}:{number}" for number in ports]


def failures(report: dict[str, Any]) -> list[str]:
    """What keeps it from being a success, beside what keeps any run from that."""
    status, places = report["status"], report["whereabouts"]
    found = []
    if places["killed_at_seconds"] is None:
        found.append(f"no engine was killed: {places['failure'] or 'none held a frame in time'}")
    elif status["remote_peers"][0]["is_up"]:
        found.append("the server has not noticed that an engine was killed")
    found += [f"{name} is 0: too little load" for name in ("remoted_frames", "remote_gets") if not status[name]]
    if status["remote_lost_frames"]:
        found.append(f"remote_lost_frames is {status['remote_lost_frames']}")
    return found


def rows(report: dict[str, Any]) -> dict[str, str]:
    """For the table."""
    status, places = report["status"], report["whereabouts"]
    return {
        "frames sent to engines, fetched, hedged": f"{status['remoted_frames']}, {status['remote_gets']}, "
        f"{status['remote_hedged_gets']}",
        "frames at engines now, on the disk": f"{status['remote_frames']} ({status['remote_copies']} copies), "
        f"{status['backing_frames']}",
        "packets dropped for want of memory, sent again": f"{report['netstat']['PFMemallocDrop']}, "
        f"{report['netstat']['TCPTimeouts']}",
        "an engine was killed after": f"{places['killed_at_seconds']} s",
    }


def draw(report: dict[str, Any], path: Path | None) -> str:
    """Makes the plot; a line that names it."""
    places: dict[str, Any] = report["whereabouts"]
    samples: Sequence[dict[str, float]] = places["samples"]
    if not samples:
        return "no plot: the server was never asked"
    if path is None:
        with tempfile.NamedTemporaryFile(prefix="zcache-run-remote-", suffix=".png", delete=False) as file:
            path = Path(file.name)
    plot(samples, places["killed_at_seconds"], path)
    return f"where the frames were: {path}"
