"""Encryption as seen from outside: what is in the backing file, and what is nowhere to be found."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from tests.nbd.conftest import Serve
from zcache.allocators.choice import ALLOCATORS
from zcache.image.image import new_descriptor
from zcache.testvm.figures import page_faults

PAGES = 2048
MARK = b"zcache plaintext"


@pytest.fixture
def image() -> Iterator[int]:
    descriptor = new_descriptor()
    yield descriptor
    os.close(descriptor)


def marked_pages(rng: random.Random, count: int) -> list[bytes]:
    """Pages that do not compress, so that they are stored as they are, each with a mark in it."""
    return [rng.randbytes(2000) + MARK + rng.randbytes(2080) for _ in range(count)]


@pytest.mark.parametrize("encrypt", [(), ("encrypt=yes",), ("encrypt=no",)])
def test_plaintext_is_below_only_with_encrypt_no(
    serve: Serve, rng: random.Random, tmp_path: Path, encrypt: tuple[str, ...]
) -> None:
    backing = tmp_path / "b"
    server = serve("size=16M", "budget=1M", f"backing={backing}", *encrypt)
    client = server.connect()
    pages = marked_pages(rng, PAGES)
    for index, page in enumerate(pages):
        client.pwrite(page, index * 4096)
    content = backing.read_bytes()
    in_plain = sum(page[:64] in content for page in rng.sample(pages[: PAGES // 2], 50))
    if encrypt == ("encrypt=no",):
        assert content.count(MARK) > PAGES // 2 and in_plain == 50
    else:
        assert MARK not in content and in_plain == 0
        status = server.status()
        assert status["written_back_frames"] * status["frame_bytes"] > PAGES // 2 * 4096
    for index in rng.sample(range(PAGES), 200):
        assert client.pread(4096, index * 4096) == pages[index]
    assert server.status()["encrypt"] is (encrypt != ("encrypt=no",))
    client.shutdown()


def test_without_a_backing_nothing_is_encrypted(serve: Serve) -> None:
    assert serve("size=1M", "budget=1M").status()["encrypt"] is False


def test_the_next_server_reads_what_the_last_one_encrypted_and_the_key_is_nowhere_but_in_the_image(
    serve: Serve, rng: random.Random, tmp_path: Path, image: int
) -> None:
    backing = tmp_path / "b"
    words = ("size=16M", "budget=1M", f"backing={backing}", f"image={image}")
    pages = marked_pages(rng, PAGES)
    server = serve(*words, descriptors=(image,))
    client = server.connect()
    for index, page in enumerate(pages):
        client.pwrite(page, index * 4096)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    second = serve(*words, descriptors=(image,))
    client = second.connect()
    assert b"".join(client.pread(4096, index * 4096) for index in range(PAGES)) == b"".join(pages)
    client.shutdown()
    status = repr(second.status())
    assert second.stop() == 0
    secret = os.pread(image, 4096, 0).split(b'"secret": "')[1][:64]
    key = bytes.fromhex(secret.decode())
    assert len(key) == 32 and os.pread(image, 4096, 0).count(secret) == 1
    seen = backing.read_bytes() + server.log.read_bytes() + second.log.read_bytes() + status.encode()
    for form in (key, secret, secret.upper(), key[::-1], repr(key)[2:-1].encode()):
        assert form not in seen


@pytest.mark.parametrize("allocator", [*ALLOCATORS])
def test_sealing_opening_and_refusing_take_no_page_faults(
    serve: Serve, rng: random.Random, tmp_path: Path, allocator: str
) -> None:
    """The library's code is not populated whole: what the warm-up runs through has to be all of
    it."""
    backing = tmp_path / "b"
    server = serve("size=32M", "budget=1M", f"backing={backing}", f"allocator={allocator}", options=("-t", "1"))
    client = server.connect()
    client.pwrite(rng.randbytes(4096), 0)  # the thread's first request populates its stack
    before = page_faults(server.process.pid)
    for index in range(0, 4096, 32):
        client.pwrite(rng.randbytes(32 * 4096), index * 4096)
    for index in range(4096):
        client.pread(4096, index * 4096)
    with backing.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(8000 * 4096))
    for index in range(0, 2000, 100):
        with pytest.raises(nbd.Error):
            client.pread(4096, index * 4096)
    assert page_faults(server.process.pid) == before
    status = server.status()
    fetched_frames = status["fetched_frames"] + status["readahead_frames"]
    moved = {
        name: count * status["frame_bytes"] // 4096
        for name, count in (("fetched", fetched_frames), ("written back", status["written_back_frames"]))
    }
    assert min(moved.values()) > 3000 and status["checksum_errors"] == 20, moved
    client.shutdown()
