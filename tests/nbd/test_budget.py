"""A real server's budget: changed while it serves, shared by swap and clean exports, and kept by
its successors."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.nbd.conftest import RunningServer, Serve
from tests.nbd.test_clean_exports import connect, pages
from tests.nbd.test_keeper import Keeper
from tests.support.pages import raw_page
from zcache.control.ask import ask

ZCACHE = str(Path(sys.executable).with_name("zcache"))
MIB = 1 << 20


def zcache(server: RunningServer, *words: str) -> tuple[int, str]:
    command = [ZCACHE, *words, "--control", str(server.control)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_budget_is_set_while_pages_come_and_go(serve: Serve, tmp_path: Path, rng: random.Random) -> None:
    server = serve("size=32M", "budget=4M..16M", f"backing={tmp_path}/b", "allocator=log")
    client = server.connect()
    assert server.status()["budget_bytes"] == 4 * MIB
    content = [raw_page(rng) for _ in range(2048)]
    model: dict[int, bytes] = {}

    def use(count: int) -> None:
        for _ in range(count):
            index = rng.randrange(8192)
            if index in model:
                assert client.pread(4096, index * 4096) == model[index]
            model[index] = rng.choice(content)
            client.pwrite(model[index], index * 4096)

    use(3000)
    for budget in ("12M", "8M", "16M", "5M..6M"):
        status, said = zcache(server, "set", f"budget={budget}")
        assert status == 0 and "budget=" in said, said
        most = int(budget.split("..")[-1][:-1]) * MIB
        use(500)
        until(lambda most=most: server.status()["budget_bytes"] <= most)  # type: ignore[misc]
        if ".." not in budget:
            until(lambda most=most: server.status()["budget_bytes"] == most)  # type: ignore[misc]
        server.check()
    assert server.status()["budget_decisions"][0]["after_bytes"] <= 6 * MIB
    for index, page in model.items():
        assert client.pread(4096, index * 4096) == page
    client.shutdown()


def test_what_cannot_be_set_is_said(serve: Serve) -> None:
    server = serve("size=8M", "budget=16M", "overcommit=yes")
    for word, said in (
        ("budget=64M", "more than the server was started with"),
        ("budget=64K", "give at least"),
        ("nonsense=1", "no such setting; give budget="),
        ("admit", "no such setting"),
    ):
        status, output = zcache(server, "set", word)
        assert status == 2 and said in output and output.startswith("zcache: ") and output.count("\n") == 1, output
    status, output = zcache(server, "set", "admit=always")
    assert status == 0 and "admit=always" in output
    assert server.status()["admit"] == "always"


def test_memory_really_goes_back(serve: Serve) -> None:
    server = serve("size=64M", "budget=16M..128M", "overcommit=yes", "clean=x:/proc/self/exe:ro")
    begin = server.status()["rss_bytes"]
    zcache(server, "set", "budget=96M")
    until(lambda: server.status()["budget_bytes"] == 96 * MIB)
    grown = server.status()["rss_bytes"]
    assert grown - begin > 70 * MIB
    zcache(server, "set", "budget=16M")
    until(lambda: server.status()["budget_bytes"] == 16 * MIB)
    assert server.status()["rss_bytes"] - begin < 8 * MIB
    server.check()


def test_swap_pushes_clean_data_out_frame_by_frame(serve: Serve, tmp_path: Path, rng: random.Random) -> None:
    """One for one, and no put waits for anything but that: nothing is written below while there is
    clean data."""
    content = pages(rng, 4096)
    (tmp_path / "image").write_bytes(content)
    words = ("size=16M", "budget=2M", f"backing={tmp_path}/b", f"clean=image:{tmp_path}/image", "admit=always")
    server = serve(*words, "allocator=log")
    clean, swap = connect(server, "image"), connect(server, "swap")
    for offset in range(0, len(content), MIB):
        clean.pread(MIB, offset)
    before = server.status()
    assert before["ephemeral_frames"] == before["resident_frames"] > 20 and before["eph_ate_tail"] > 0
    taken = 0
    while server.status()["ephemeral_frames"]:
        swap.pwrite(raw_page(rng), taken * 4096)
        taken += 1
        status = server.status()
        eaten = status["pers_ate_eph"]
        assert eaten == status["evicted_ephemeral_frames"] - before["evicted_ephemeral_frames"]
        assert status["persistent_frames"] == eaten == before["ephemeral_frames"] - status["ephemeral_frames"]
        assert not status["pers_ate_eph_failed"]
        # Background reclaim begins at the last of it: its first flight may have landed by now.
        assert not status["written_back_frames"] or not status["ephemeral_frames"]
    assert taken > 15 * eaten - 15  # raw pages, fifteen to a frame
    for index in range(taken, 4096):
        swap.pwrite(raw_page(rng), index * 4096)
    assert server.status()["written_back_frames"] > 0
    for client in (clean, swap):
        client.shutdown()


def test_successors_go_on_with_what_was_set(tmp_path: Path, rng: random.Random) -> None:
    keeper = Keeper(tmp_path / "state", ("size=32M", "budget=4M..16M", f"backing={tmp_path}/b"))
    keeper.arm()
    client = keeper.connect()
    content = [raw_page(rng) for _ in range(2048)]
    for index, page in enumerate(content):
        client.pwrite(page, index * 4096)
    control = keeper.folder.control
    for word in ("budget=8M..12M", "low_watermark=1M", "high_watermark=2M", "recompress_share=20%", "admit=always"):
        ask(control, f"set {word}")
    names = ("budget_min_bytes", "budget_max_bytes", "recompress_share", "admit", "low_watermark_frames")
    until(lambda: 8 * MIB <= ask(control, "status")["budget_bytes"] <= 12 * MIB)
    before = {name: ask(control, "status")[name] for name in names}
    for _ in range(2):
        server = keeper.server_pid()
        subprocess.run(["kill", "-KILL", str(server)], check=True)
        keeper.until(lambda server=server: keeper.serves() and keeper.server_pid() != server)  # type: ignore[misc]
        status = ask(control, "status")
        assert {name: status[name] for name in names} == before
        assert 8 * MIB <= status["budget_bytes"] <= 12 * MIB
        client = keeper.connect()
        for index in rng.sample(range(2048), 200):
            assert client.pread(4096, index * 4096) == content[index]
        assert ask(control, "check")["balanced"]
        keeper.until(keeper.folder.armed.exists)
    client.shutdown()
    keeper.close()
