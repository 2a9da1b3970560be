"""The end of a server with engines: its connections to them are not clients', and nothing of it
stays there."""

import random
import threading
import time
from pathlib import Path

from tests.nbd.conftest import Serve
from tests.support.engines import engines, wait_until

PAGE_BYTES = 4096


def test_a_server_ends_though_engines_stay_connected_and_leaves_nothing_there(
    serve: Serve, tmp_path: Path, rng: random.Random
) -> None:
    with engines(tmp_path, 2) as (first, second):
        remote = [f"remote={engine.url()}" for engine in (first, second)]
        server = serve("size=48M", "budget=16M", "remote_budget=48M", *remote)
        client = server.connect()
        for index in range(8192):
            client.pwrite(rng.randbytes(PAGE_BYTES), index * PAGE_BYTES)

        def are_there_twice() -> bool:  # none is on its way any more
            status = server.status()
            return 100 < int(status["remote_frames"]) == int(status["remote_copies"]) / 2

        wait_until(are_there_twice, "each frame is there twice")
        assert all(int(str(engine.call("DBSIZE"))) > 100 for engine in (first, second))
        client.shutdown()
        assert server.stop() == 0
        assert [engine.call("DBSIZE") for engine in (first, second)] == [0, 0]


def test_what_a_client_was_waiting_for_comes_before_the_end(serve: Serve, tmp_path: Path, rng: random.Random) -> None:
    """A read from engines that are slow to answer, while the server is told to end."""
    with engines(tmp_path, 2) as (first, second):
        remote = [f"remote={engine.url()}" for engine in (first, second)]
        server = serve("size=48M", "budget=16M", "remote_budget=48M", *remote)
        client = server.connect()
        pages = [rng.randbytes(PAGE_BYTES) for _ in range(8192)]
        for index, page in enumerate(pages):
            client.pwrite(page, index * PAGE_BYTES)
        first.pause()
        second.pause()
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(bytes(client.pread(PAGE_BYTES, 0))))
        reader.start()
        time.sleep(0.2)
        server.process.terminate()
        first.resume()
        second.resume()
        reader.join()
        assert read == [pages[0]]
        assert server.process.wait(30) == 0
