"""Clean exports of a real nbdkit: found by name, read from RAM the second time, written through,
and never stale."""

import os
import random
import subprocess
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.nbd.conftest import RunningServer, Serve
from tests.nbd.test_bad_input import refusal, with_words
from tests.nbd.test_operations import extents_of, random_range
from tests.support.pages import any_page, page_with_zpage_of

WORDS = ("size=8M", "budget=2M", "overcommit=yes")


def connect(server: RunningServer, name: str) -> Any:
    client = nbd.NBD()
    client.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    client.set_export_name(name)
    client.connect_unix(str(server.socket))
    return client


def pages(rng: random.Random, count: int) -> bytes:
    return b"".join(page_with_zpage_of(rng, 1200) for _ in range(count))


def export(server: RunningServer, name: str) -> dict[str, Any]:
    return next(export for export in server.status()["clean_exports"] if export["name"] == name)


def test_exports_are_listed_with_their_sizes(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(3 << 20))
    (tmp_path / "odd").write_bytes(bytes(1234567))
    server = serve(*WORDS, f"clean=one:{tmp_path}/one", f"clean=odd.img:{tmp_path}/odd:ro")
    found = []
    client = nbd.NBD()
    client.set_opt_mode(True)
    client.connect_unix(str(server.socket))
    client.opt_list(lambda name, _description: found.append(name))
    client.opt_abort()
    assert found == ["device", "one", "odd.img"]
    for name, size, read_only in (
        ("", 8 << 20, False),
        ("device", 8 << 20, False),
        ("one", 3 << 20, False),
        ("odd.img", 1234567, True),
    ):
        client = connect(server, name)
        assert (client.get_size(), client.is_read_only()) == (size, read_only)
        client.shutdown()
    with pytest.raises(nbd.Error):
        connect(server, "two")
    assert "no export is called 'two'; there are device, one, odd.img" in server.log.read_text()


def test_the_second_read_is_from_ram(serve: Serve, tmp_path: Path, rng: random.Random) -> None:
    content = pages(rng, 64)
    (tmp_path / "image").write_bytes(content)
    server = serve(*WORDS, f"clean=image:{tmp_path}/image", "admit=always")
    client = connect(server, "image")
    for _ in range(3):
        assert client.pread(65536, 4096) == content[4096 : 4096 + 65536]
    assert (export(server, "image")["file_reads"], server.status()["ephemeral_pages"]) == (1, 16)
    client.pwrite(content[:4096], 8192)
    assert (tmp_path / "image").read_bytes()[8192:12288] == content[:4096]
    assert client.pread(12288, 4096) == content[4096:8192] + content[:4096] + content[12288:16384]
    client.shutdown()


def test_with_admit_reused_it_is_the_third(serve: Serve, tmp_path: Path, rng: random.Random) -> None:
    content = pages(rng, 64)
    (tmp_path / "image").write_bytes(content)
    server = serve(*WORDS, f"clean=image:{tmp_path}/image")
    client = connect(server, "image")
    for reads in (1, 2, 2, 2):
        assert client.pread(65536, 0) == content[:65536]
        assert export(server, "image")["file_reads"] == reads
    assert server.status()["admit"] == "reused" and server.status()["reject_not_reused"] == 16
    client.shutdown()


def test_a_read_only_export_cannot_be_written(serve: Serve, tmp_path: Path, rng: random.Random) -> None:
    content = pages(rng, 4)
    image = tmp_path / "image"
    image.write_bytes(content)
    image.chmod(0o400)
    client = connect(serve(*WORDS, f"clean=image:{image}:ro"), "image")
    client.set_strict_mode(0)
    with pytest.raises(nbd.Error):
        client.pwrite(bytes(4096), 0)
    assert client.pread(len(content), 0) == content == image.read_bytes()
    client.shutdown()


def test_holes_are_seen_and_made(serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as sparse:
        sparse.truncate(4 << 20)
        os.pwrite(sparse.fileno(), b"x" * 65536, 1 << 20)
    client = connect(serve(*WORDS, f"clean=image:{image}"), "image")
    assert extents_of(client, 4 << 20, 0) == [(1 << 20, True), (65536, False), ((3 << 20) - 65536, True)]
    client.pwrite(b"y" * 65536, 2 << 20)
    client.trim(65536, 1 << 20)
    client.zero(4096, (2 << 20) + 8192)
    assert client.pread(65536, 1 << 20) == bytes(65536)
    assert client.pread(16384, 2 << 20) == b"y" * 8192 + bytes(4096) + b"y" * 4096
    client.flush()
    assert sum(length for length, zeros in extents_of(client, 4 << 20, 0) if not zeros) <= 65536
    client.shutdown()


@pytest.mark.parametrize("admit", ["always", "reused"])
def test_any_operation_on_swap_and_clean_exports_at_once(
    serve: Serve, tmp_path: Path, rng: random.Random, admit: str
) -> None:
    """Two connections to each of two disks, and one to the device, under a budget of a quarter of
    them."""
    models = {"": bytearray(4 << 20), "one": bytearray(pages(rng, 512)), "two": bytearray(rng.randbytes(1_500_001))}
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(models[name])
    words = ("size=4M", "budget=2M", f"backing={tmp_path}/b", f"admit={admit}")
    server = serve(*words, *(f"clean={name}:{tmp_path}/{name}" for name in ("one", "two")))
    clients = {name: [connect(server, name) for _ in range(2)] for name in models}
    for _ in range(3000):
        name = rng.choice([*models])
        client, model = rng.choice(clients[name]), models[name]
        offset, length = random_range(rng, len(model))
        match rng.choice(["write", "read", "read", "read", "zero", "flush"]):
            case "write":
                data = b"".join(any_page(rng) for _ in range(length // 4096 + 1))[:length]
                client.pwrite(data, offset)
                model[offset : offset + length] = data
            case "read":
                assert client.pread(length, offset) == model[offset : offset + length]
            case "zero":
                client.zero(length, offset, rng.choice([0, nbd.CMD_FLAG_NO_HOLE]))
                model[offset : offset + length] = bytes(length)
            case "flush":
                client.flush()
    for name in ("one", "two"):
        assert (tmp_path / name).read_bytes() == models[name]
        assert connect(server, name).pread(len(models[name]), 0) == models[name]
    status = server.status()
    assert status["ephemeral_gets"] > status["ephemeral_misses"] > 0
    server.check()
    for some in clients.values():
        for client in some:
            client.shutdown()


def test_a_disk_that_was_cut_off_is_an_error_and_the_swap_goes_on(serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    server = serve(*WORDS, f"clean=image:{image}")
    client, swap = connect(server, "image"), connect(server, "")
    swap.pwrite(b"swap" * 1024, 0)
    os.truncate(image, 4096)
    with pytest.raises(nbd.Error, match="Input/output"):
        client.pread(8192, 65536)
    assert server.status()["state"] == "degraded"
    assert "clean export image: read: short read" in server.status()["reasons"][0]
    assert client.pread(4096, 0) == bytes(4096) and swap.pread(4096, 0) == b"swap" * 1024
    assert server.status()["state"] == "ok"
    client.shutdown()
    swap.shutdown()


def test_tools_copy_and_list_it(serve: Serve, tmp_path: Path, rng: random.Random) -> None:
    content = pages(rng, 300)
    (tmp_path / "image").write_bytes(content)
    server = serve(*WORDS, f"clean=image:{tmp_path}/image:ro")
    uri = f"nbd+unix:///image?socket={server.socket}"
    subprocess.run(["nbdcopy", uri, tmp_path / "copy"], check=True, timeout=60)
    assert (tmp_path / "copy").read_bytes() == content
    listed = subprocess.run(["nbdinfo", "--list", server.uri], capture_output=True, text=True, check=True, timeout=60)
    assert 'export="device"' in listed.stdout and 'export="image"' in listed.stdout
    assert f"export-size: {len(content)}" in listed.stdout and "is_read_only: true" in listed.stdout


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("clean=", "no path; give NAME:PATH"),
        ("clean=image", "no path; give NAME:PATH"),
        ("clean=image:", "no path; give NAME:PATH"),
        ("clean=:/dev/null", "'' cannot be an export's name"),
        ("clean=swap:/dev/null", "'swap' cannot be an export's name"),
        ("clean=a b:/dev/null", "'a b' cannot be an export's name"),
        ("clean=image:/nowhere/at/all", "does not exist; give a disk image or block device"),
        ("clean=image:/dev/null", "neither a regular file nor a block device"),
        ("clean=image:/tmp:ro", "neither a regular file nor a block device"),
        ("admit=never", "give reused or always"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, word: str, said: str) -> None:
    line = refusal(tmp_path, *with_words(), word)
    assert line.startswith(word) and said in line


def test_the_same_disk_twice_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    line = refusal(tmp_path, *with_words(), f"clean=one:{image}", f"clean=two:{image}:ro")
    assert "clean=two" in line and "in use: held by another export" in line
    line = refusal(tmp_path, *with_words(), f"clean=one:{image}", f"clean=one:{image}")
    assert "two exports called one" in line
    line = refusal(tmp_path, *with_words(backing=str(image), size="65M", overcommit="yes"), f"clean=one:{image}")
    assert line == f"clean=one:{image}: that is the backing; give a disk of its own"
    assert image.read_bytes() == bytes(8192)
