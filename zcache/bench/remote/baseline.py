"""`scripts/bench remote baseline`: the way without code, beside the tier: a RAM disk on another
machine as `backing=`, over the kernel's own nbd client.

In a guest, over its network card: frames of 64 KiB from an engine on the host, by the tier, and
from nbdkit's memory plugin there, by a `BackingFile` over /dev/nbdN with O_DIRECT, as a server has
it. `python -m zcache.bench.remote.baseline ENGINE_PORT NBD_PORT …` is the guest's half.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from zcache.bench.remote.engines import engine
from zcache.bench.remote.reading import Found, Way, fill, read
from zcache.bench.remote.sources import FRAME_BYTES, Source, remote_tier
from zcache.bench.report import Figure
from zcache.errors import EnvironmentProblem
from zcache.remote.url import Address
from zcache.testvm import HOST_ADDRESS, VmConfig
from zcache.testvm.vm import run_in_vm
from zcache.tiers.backing_file import BackingFile

#: Of the guest; a boot takes up to a minute in software emulation.
_BOOT_SECONDS: Final = 300
_START_SECONDS: Final = 10.0
_TIER: Final = "engine, by the tier"
_DISK: Final = "RAM disk, by the kernel's nbd client"


def measure(frame_count: int, seconds: int, rounds: int) -> list[dict[str, Figure]]:
    """A row for each way to read, and each of the two."""
    with tempfile.TemporaryDirectory(prefix="zcache-baseline-") as name, contextlib.ExitStack() as stack:
        server = stack.enter_context(engine(Path(name)))
        port = stack.enter_context(_memory_disk((frame_count + 2) * FRAME_BYTES))
        numbers = [int(server.addresses[1].sockaddr[1]), port, frame_count, seconds, rounds]
        output = Path(name) / "figures"
        config = VmConfig(memory="700M", network=True, timeout_seconds=_BOOT_SECONDS + 12 * seconds * rounds)
        command = [".venv/bin/python", "-P", "-m", "zcache.bench.remote.baseline", *map(str, numbers)]
        with output.open("wb") as stdout:
            result = run_in_vm(config, command, stdout=stdout)
        if result.exit_status != 0:
            raise EnvironmentProblem(f"the guest failed: {result.failure or output.read_text()[-300:]}")
        rows: list[dict[str, Figure]] = json.loads(output.read_text().splitlines()[-1])
        return rows


@contextlib.contextmanager
def _memory_disk(size_bytes: int) -> Iterator[int]:
    """nbdkit's memory plugin at a port of this machine's loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "memory", str(size_bytes), "allocator=malloc"]
    with subprocess.Popen(command) as server:
        try:
            ends = time.monotonic() + _START_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if time.monotonic() > ends or server.poll() is not None:
                    raise EnvironmentProblem("nbdkit does not answer")
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()


def _guest(engine_port: int, nbd_port: int, frame_count: int, seconds: int, rounds: int) -> list[dict[str, Figure]]:
    from zcache.bench.remote.__main__ import WAYS, of_all

    tier = remote_tier([Address(socket.AF_INET, (HOST_ADDRESS, engine_port))], frame_count)
    found: dict[tuple[str, Way], list[Found]] = {}
    with _attached(nbd_port) as path:
        disk = BackingFile.open(path, needed_bytes=0, new_bytes=0, frame_bytes=FRAME_BYTES, force=True)
        sources: list[tuple[str, Source]] = [(_TIER, tier), (_DISK, disk)]
        for _, source in sources:
            fill(source, frame_count)
        for turn in range(rounds):
            for place, source in reversed(sources) if turn % 2 else sources:
                for way in WAYS:
                    figures = read(source, frame_count, way, seconds, turn, [])
                    found.setdefault((place, way), []).append(figures)
        disk.close()
    tier.close()
    rows: list[dict[str, Figure]] = []
    for (place, way), each in sorted(found.items(), key=lambda item: WAYS.index(item[0][1])):
        median = of_all(each)
        rows.append(
            {
                "under way": way.name,
                "frames from": place,
                "p50 us": round(median.p50_us),
                "p99 us": round(median.p99_us),
                "frames/s": round(median.frames_per_second),
                "own CPU us": round(median.own_us),
            }
        )
    return rows


@contextlib.contextmanager
def _attached(port: int) -> Iterator[Path]:
    """A /dev/nbdN of this guest's kernel, over its network."""
    import nbd  # of the guest's half alone, as what follows

    from zcache.swap.handshake import NBD_FLAG_HAS_FLAGS
    from zcache.swap.nbd_netlink import ConnectRequest, connect, disconnect

    subprocess.run(["modprobe", "nbd"], check=True)
    handle = nbd.NBD()
    handle.set_request_structured_replies(False)
    handle.connect_tcp(HOST_ADDRESS, str(port))
    descriptor = os.dup(handle.aio_get_fd())
    request = ConnectRequest(handle.get_size(), 4096, NBD_FLAG_HAS_FLAGS, 0, 300)
    del handle
    index = connect(request, descriptor)
    path = Path(f"/dev/nbd{index}")
    try:
        while not path.exists():
            time.sleep(0.05)
        yield path
    finally:
        disconnect(index)
        os.close(descriptor)


def main(words: Sequence[str]) -> None:
    """The guest's half."""
    print(json.dumps(_guest(*map(int, words))))


if __name__ == "__main__":
    main(sys.argv[1:])
