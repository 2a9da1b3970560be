"""Parameters in all their spellings (refusals are tested on a real nbdkit, in
tests/nbd/test_bad_input.py)."""

import os
from pathlib import Path

import pytest

from zcache.errors import BadInput
from zcache.image.image import Image, new_descriptor
from zcache.linux import meminfo
from zcache.linux.meminfo import read_bytes
from zcache.server.assembly import check_succession, geometry_of
from zcache.server.config import parse_config
from zcache.sizes import parse_budget, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("8k", 8192),
        ("512M", 512 << 20),
        ("1.5G", 3 << 29),
        ("2GiB", 2 << 30),
        ("1T", 1 << 40),
        ("4096b", 4096),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size("size", text) == size_bytes


def test_a_backing_is_no_clean_export(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    (tmp_path / "link").symlink_to("disk")
    words = [("size", "64M"), ("budget", "16M"), ("backing", f"{tmp_path}/disk"), ("clean", f"a:{tmp_path}/link:ro")]
    with pytest.raises(BadInput, match=r"^clean=a:.*/link:ro: that is the backing; give a disk of its own$"):
        parse_config(words)


def test_budget_as_a_share_of_ram() -> None:
    budget_bytes, most_bytes = parse_budget("25%", "")
    assert budget_bytes == most_bytes
    assert budget_bytes % 4096 == 0
    assert abs(budget_bytes - read_bytes("MemTotal") / 4) < 4096


def test_no_more_budget_is_taken_than_the_size_can_use() -> None:
    for allocator, frames in (("zbud", 64 << 8), ("log", -(-(64 << 8) // 14) + 8)):
        config = parse_config([("size", "64M"), ("budget", "1G"), ("allocator", allocator)])
        assert config.budget_frames == config.needed_frames == frames
    with pytest.raises(BadInput, match="more than 90% of this machine's"):
        parse_budget(str(read_bytes("MemTotal") // 4096 * 4096), "")


def test_a_successor_has_the_budget_of_its_predecessor_whatever_ram_there_is_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory can be taken from a guest, and given to it; the image is as it was made."""
    words = [("size", "1G"), ("budget", "25%"), ("overcommit", "yes")]
    before = parse_config(words)
    descriptor = new_descriptor()
    succession = [*words, ("image", str(descriptor))]
    assert parse_config(succession).budget_bytes == before.budget_bytes  # there is nothing in it yet
    Image.new(descriptor, geometry_of(before, 0))
    monkeypatch.setattr(meminfo, "read_bytes", lambda _name: 256 << 20)
    assert parse_config(words).budget_bytes == 64 << 20
    after = parse_config(succession)
    assert after.budget_bytes == before.budget_bytes
    check_succession(after)
    os.close(descriptor)


def test_a_successor_goes_on_without_a_password_that_cannot_be_read(tmp_path: Path) -> None:
    """What it needs an engine for is little beside what is in RAM."""
    path = tmp_path / "password"
    path.write_text("open-sesame")
    urls = [("remote", f"redis://alice@10.0.0.{n}?password_file={path}") for n in (1, 2)]
    words = [("size", "64M"), ("budget", "16M"), ("remote_budget", "64M"), *urls]
    before = parse_config(words)
    path.unlink()
    with pytest.raises(BadInput, match="No such file"):
        parse_config(words)
    descriptor = new_descriptor()
    succession = [*words, ("image", str(descriptor))]
    with pytest.raises(BadInput, match="No such file"):
        parse_config(succession)  # there is nothing in it yet
    Image.new(descriptor, geometry_of(before, 0))
    assert parse_config(succession).remote == before.remote
    os.close(descriptor)


@pytest.mark.parametrize(
    ("words", "allocator"),
    [
        ({}, "log"),
        ({"size": "64M"}, "zbud"),  # log would need 73.7 MiB
        ({"size": "64M", "overcommit": "yes"}, "log"),
        ({"size": "1G", "backing": "/b"}, "log"),
        ({"budget": "512K", "size": "400K"}, "zbud"),
        ({"budget": "512K", "backing": "/b"}, "zbud"),
    ],
)
def test_the_default_allocator_is_one_that_can_keep_its_promise(words: dict[str, str], allocator: str) -> None:
    config = parse_config({"size": "50M", "budget": "64M", **words}.items())
    assert config.allocator == allocator and bool(config.remark) is (allocator == "zbud")
    assert config.overcommit or config.below_bytes == 0 or config.backing


@pytest.mark.parametrize(("mib", "allocator"), [(0, "log"), (37, "zbud"), (43, "zbud"), (44, "log")])
def test_a_backing_that_is_just_large_enough_takes_zbud(tmp_path: Path, mib: int, allocator: str) -> None:
    """34 MiB beyond the budget take as much in zbud, and 43.7 with a header in log."""
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        file.truncate(mib << 20)
    config = parse_config([("size", "64M"), ("budget", "30M"), ("backing", str(backing))])
    assert config.allocator == allocator
    assert ("7M more" if mib == 37 else "1M more" if mib == 43 else "") in config.remark


def test_log_is_refused_where_it_cannot_keep_its_promise() -> None:
    words = [("size", "64M"), ("budget", "64M"), ("allocator", "log")]
    with pytest.raises(BadInput, match="takes 77266944 bytes with allocator=log if nothing compresses"):
        parse_config(words)
    assert parse_config([*words, ("backing", "/b")]).below_bytes == 77266944 - (64 << 20)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([("allocator", "zbud"), ("recompress", "zstd")], "gains nothing with allocator=zbud"),
        ([("codec", "zstd:1"), ("recompress", "zstd:9")], "only what lz4 has compressed is; give codec=lz4"),
        ([("recompress", "lz4")], "no such choice"),
        ([("recompress", "zstd:20")], "no such level"),
    ],
)
def test_recompression_that_cannot_be(words: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_config([("size", "50M"), ("budget", "64M"), *words])


def test_defaults() -> None:
    config = parse_config([("size", "1G"), ("budget", "1G")])
    assert config.codec.name == "lz4" and config.allocator == "zbud" and config.hardening == "warn"
    assert not config.overcommit and not config.force and config.backing is config.control is None
    assert config.below_bytes == 0
    assert not config.encrypt


@pytest.mark.parametrize(("words", "encrypt"), [({}, True), ({"encrypt": "yes"}, True), ({"encrypt": "no"}, False)])
def test_what_leaves_ram_is_encrypted_unless_asked_not_to(words: dict[str, str], encrypt: bool) -> None:
    config = parse_config([("size", "1G"), ("budget", "512M"), ("backing", "/b"), *words.items()])
    assert config.encrypt is encrypt


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY, os.O_PATH])
def test_a_file_is_no_image(tmp_path: Path, flags: int) -> None:
    """Whatever is in it, and however it was opened."""
    (tmp_path / "file").write_text("something")
    descriptor = os.open(tmp_path / "file", flags)
    with pytest.raises(BadInput, match="not a descriptor of a memfd"):
        parse_config([("size", "1M"), ("budget", "1M"), ("image", str(descriptor))])
    os.close(descriptor)
