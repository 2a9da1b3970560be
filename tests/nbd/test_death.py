"""A server that is killed, and the next one that goes on with its image: every write that was
answered is there."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from tests.nbd.conftest import RunningServer, Serve
from tests.support.pages import any_page
from zcache.image.image import new_descriptor

PAGES = 4096


@pytest.fixture
def image() -> Iterator[int]:
    descriptor = new_descriptor()
    yield descriptor
    os.close(descriptor)


def kill(server: RunningServer) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()


def test_ten_deaths_under_load(serve: Serve, rng: random.Random, tmp_path: Path, image: int) -> None:
    """Writes, overwrites, trims and reads go on until the server is killed under them; then all is
    looked at."""
    words = ("size=16M", "budget=2M", f"backing={tmp_path}/b", f"image={image}")
    known: dict[int, bytes] = {}  # what the last answered write or trim left
    for life in range(11):
        server = serve(*words, descriptors=(image,))
        client = server.connect()
        for index in range(PAGES):
            if index in known:
                assert client.pread(4096, index * 4096) == known[index], f"page {index} in life {life}"
        server.check()
        if life == 10:
            client.shutdown()
            assert server.status()["fetched_frames"] > 0
            break
        timer = threading.Timer(rng.uniform(0.05, 0.8), lambda server=server: kill(server))
        timer.start()
        try:
            while True:
                first, count = rng.randrange(PAGES - 32), rng.choice([1, 1, 8, 32])
                asked = [bytes(4096)] * count if rng.random() < 0.1 else [any_page(rng) for _ in range(count)]
                for index in range(first, first + count):
                    known.pop(index, None)  # not answered yet: it may be either
                if any(any(page) for page in asked):
                    client.pwrite(b"".join(asked), first * 4096)
                else:
                    client.trim(count * 4096, first * 4096)
                known.update(enumerate(asked, first))
        except nbd.Error:
            pass
        timer.join()
    assert len(known) > PAGES // 4


def test_a_million_pages_are_taken_over_in_seconds(serve: Serve, tmp_path: Path, image: int) -> None:
    """A server that takes its time to come back is a machine that stands still."""
    words = ("size=4G", "budget=64M", f"backing={tmp_path}/b", "overcommit=yes", f"image={image}")
    server = serve(*words, descriptors=(image,))
    client = server.connect()
    chunk = b"".join(bytes([index % 251 + 1]) * 4096 for index in range(32))
    for start in range(0, 4 << 30, len(chunk)):
        client.pwrite(chunk, start)
    kill(server)
    begin = time.monotonic()
    server = serve(*words, descriptors=(image,))
    print(f"{time.monotonic() - begin:.1f} s; {server.log.read_text()}")
    assert server.status()["stored_pages"] == 1 << 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("size=32M", "budget=8M", "overcommit=yes"), "made with page_count 4096, not 8192"),
        (("size=16M", "budget=8M", "backing=/nonexistent/b"), "made with encrypt no, not yes"),
        (("size=16M", "budget=8M", "overcommit=yes", "image=0"), "not a descriptor of a memfd"),
        (("size=16M", "budget=8M", "overcommit=yes", "image=99"), "not a descriptor of a memfd"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_and_kept(
    serve: Serve, image: int, words: tuple[str, ...], said: str
) -> None:
    good = ("size=16M", "budget=8M", "overcommit=yes", f"image={image}")
    server = serve(*good, descriptors=(image,))
    client = server.connect()
    client.pwrite(b"precious" * 512, 4096)
    client.shutdown()
    server.stop()
    extra = () if any(word.startswith("image=") for word in words) else (f"image={image}",)
    refused = subprocess.run(
        ["scripts/serve", "-U", str(server.socket) + "2", *words, *extra],
        pass_fds=(image,),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode != 0 and said in refused.stderr and len(refused.stderr.splitlines()) == 1, refused.stderr
    server = serve(*good, descriptors=(image,))
    client = server.connect()
    assert client.pread(4096, 4096) == b"precious" * 512
    client.shutdown()


def test_the_budget_is_the_images(serve: Serve, image: int) -> None:
    """What was given may mean something else by now: a share of RAM, of which there is more, or
    less."""
    words = ("size=16M", "overcommit=yes", f"image={image}")
    server = serve(*words, "budget=8M", descriptors=(image,))
    server.stop()
    server = serve(*words, "budget=4M", descriptors=(image,))
    assert server.status()["budget_bytes"] == 8 << 20


def test_a_successor_serves_even_where_it_is_not_safe(serve: Serve, image: int) -> None:
    """`hardening=require` refuses to begin; to refuse to go on would lose every page. (It can fail
    only where a server is not safe: in a container, or not as root.)"""
    words = ("size=16M", "budget=8M", "overcommit=yes", f"image={image}")
    server = serve(*words, descriptors=(image,))
    client = server.connect()
    client.pwrite(b"precious" * 512, 4096)
    kill(server)
    server = serve(*words, "hardening=require", descriptors=(image,))
    client = server.connect()
    assert client.pread(4096, 4096) == b"precious" * 512
    client.shutdown()
