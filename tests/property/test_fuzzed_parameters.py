"""A hundred thousand parameter lists, random and nearly right: each is a `Config` that keeps what
`Config` promises, or one line that names the key."""

import os
import random
from pathlib import Path

import psutil
import pytest

from zcache.allocators.choice import ALLOCATORS
from zcache.errors import BadInput
from zcache.parameters import KEYS
from zcache.server.capacity import MAX_SIZE_BYTES
from zcache.server.config import HARDENING, Config, parse_config

LISTS = 100_000

NUMBERS = [
    *("0", "-1", "+4096", "4096", "8k", "64M", "1.5G", "2GiB", "512MB", "4T", "5T", "16P", "1e9", "0x1000", "1_000k"),
    *("nan", "inf", "-inf", "NaN%", "1e308%", ".5M", "5.M", "0.0000000001T", "9" * 20, "9" * 21, "9" * 5000),
    *("99999999999999999999T", "1.99999999999999999999k", "25%", "90%", "90.0001%", "0%", "100%", "-5%", "%", "%%", ""),
    *("\uff14\uff10\uff19\uff16", "\u0664k", "\u00b2", "4096\u00a0", " 4096 ", "4096\n", "4\x000", "\ud800", "\u0661%"),
]
VALUES = {
    "size": NUMBERS,
    "budget": NUMBERS,
    "backing": [
        "",
        "/",
        "/nowhere/b",
        "b",
        "../b",
        "~/b",
        "/tmp/a\nb",
        "/tmp/a\0b",
        "/" + "b" * 5000,
        "/tmp/é",
        "\udcff",
    ],
    "remote": [
        "redis://h",
        "redis://u:p%40w@h:7000?cluster=yes",
        "rediss://[::1]:6380?server_name=x",
        "unix:///tmp/engine.sock",
        "",
        "redis://",
        "redis://h:0",
        "redis://h/1",
        "redis://h?password_file=/nowhere/p",
        "redis://u:p@ss@h?x=y",
        "http://h",
        "unix://h/p",
        "redis://h\n",
    ],
    "remote_budget": NUMBERS,
    "remote_copies": ["1", "2", "0", "3", "", "two", "\uff11"],
    "codec": ["lz4", "lz4:4", "lz4:0", "lz4:65538", "lz4:", "zstd:99", "zstd:-8", "zstd:1_0", "zstd:\uff11", "lzo", ""],
    "recompress": ["zstd", "zstd:3", "off", "zstd:0", "zstd:99", "lz4", "", "zstdx"],
    "allocator": ["zbud", "log", "slab", "", "ZBUD", "zbud "],
    "clean": [
        "a:/b",
        "a:/b:ro",
        "",
        ":",
        "a",
        "a:",
        ":/b",
        "swap:/b",
        "a b:/b",
        "a:/b:rw",
        "é:/b",
        "a" * 65 + ":/b",
        "a:b",
    ],
    "admit": ["reused", "always", "", "never"],
    "overcommit": ["yes", "no", "YES", "1", "", "yes\n"],
    "force": ["yes", "no", "maybe", ""],
    "control": [
        "/tmp/control",
        "control",
        "",
        "/",
        "/nowhere/c",
        "/proc/version",
        "/tmp/" + "c" * 200,
        "/tmp/\n",
        "/tmp/\0",
    ],
    "image": ["", "0", "-1", "3", "99", "9" * 9, "9" * 10, "9" * 5000, "\uff13", "3 ", "0x3", "1e1"],
    "encrypt": ["", "yes", "no", "YES", "1"],
    "standby": ["", "0", "-1", "3", "99", "9" * 5000, "x", "0x3"],
    "hardening": ["require", "warn", "off", "on", ""],
}
#: What mutations are made of: digits, separators, what ends lines, and what only looks like a
#: digit.
CHARACTERS = "0123456789.,:=%+-_ kKmMgGtTiIbB/\\~\0\t\n\r\x7f\x85\u2028\u00a0\u0663\uff15\u00b3\ud800\udcffé\U0001f4be"


@pytest.mark.slow
def test_a_hundred_thousand_parameter_lists(rng: random.Random) -> None:
    accepted = 0
    ram_bytes = psutil.virtual_memory().total
    for _ in range(LISTS):
        words = any_list(rng)
        try:
            config = parse_config(words)
        except BadInput as refusal:
            check_refusal(str(refusal), words)
        else:
            check_config(config, ram_bytes)
            accepted += 1
    assert LISTS // 10 < accepted < LISTS * 9 // 10


def any_list(rng: random.Random) -> list[tuple[str, str]]:
    """Mostly a good list with a few things done to it; now and then noise."""
    if rng.random() < 0.05:
        return [(noise(rng, 6), noise(rng, 12)) for _ in range(rng.randrange(5))]
    words = [("size", "64M"), ("budget", rng.choice(["64M", "1%", "256k"])), ("overcommit", "yes")]
    for _ in range(rng.choice([0, 1, 1, 1, 2, 5])):
        spot = rng.randrange(len(words)) if words else 0
        match rng.randrange(6):
            case 0 | 1:
                key = rng.choice(list(KEYS))
                words = [word for word in words if word[0] != key]
                words.append((key, rng.choice(VALUES[key])))
            case 2 if words:
                key, value = words[spot]
                words[spot] = (key, mutated(rng, value))
            case 3 if words:
                key, value = words[spot]
                words[spot] = (mutated(rng, key), value)
            case 4 if words:
                words.append(words[spot])
            case _ if words:
                del words[spot]
    rng.shuffle(words)
    return words


def noise(rng: random.Random, max_length: int) -> str:
    return "".join(rng.choices(CHARACTERS, k=rng.randrange(max_length + 1)))


def mutated(rng: random.Random, text: str) -> str:
    start = rng.randrange(len(text) + 1)
    stop = min(start + rng.randrange(3), len(text))
    return text[:start] + noise(rng, 3) * rng.choice([1, 1, 1, 2000]) + text[stop:]


def check_refusal(line: str, words: list[tuple[str, str]]) -> None:
    assert line.isprintable(), words
    key, equals, _ = line.partition("=")
    given = {key if key.isprintable() else ascii(key)[1:-1] for key, _ in words} | {"size", "budget"}
    given |= {"remote_budget"} if "remote" in given else set()
    for secret in ("p%40w", "p@ss"):
        assert secret not in line or not any(f"{secret}@" in value for _, value in words), (line, words)
    assert equals and any(name.partition("=")[0] == key for name in given), (line, words)


def check_config(config: Config, ram_bytes: int) -> None:
    assert config.size_bytes % 4096 == config.budget_bytes % 4096 == 0
    assert 0 < config.size_bytes <= MAX_SIZE_BYTES
    chosen = ALLOCATORS[config.allocator]
    min_bytes = chosen.min_budget_frames * chosen.frame_bytes
    needed_bytes = chosen.frames_for(config.size_bytes // 4096) * chosen.frame_bytes
    assert needed_bytes >= config.size_bytes
    remote_bytes = config.remote_frames * chosen.frame_bytes
    if config.image is None:  # one that another test has left has the budget that it was made with
        assert min_bytes <= config.budget_bytes
        assert config.budget_bytes <= max(needed_bytes, min_bytes) or config.clean
        assert config.budget_bytes <= max(ram_bytes * 9 // 10, min_bytes)
        assert config.overcommit or config.backing or needed_bytes <= config.budget_bytes + remote_bytes
    assert config.budget_frames * chosen.frame_bytes + config.below_bytes + remote_bytes >= needed_bytes
    assert bool(config.remote) is bool(config.remote_bytes) and config.remote_copies in (1, 2)
    assert config.remote_copies == 2 or config.backing or not config.remote
    assert config.hardening in HARDENING
    assert config.codec.name.startswith(("lz4", "zstd")) and config.codec.id > 0
    assert config.image is None or os.fstat(config.image)
    for path in (config.backing, config.control):
        assert path is None or (isinstance(path, Path) and path.is_absolute())
    assert config.control is None or (config.control.parent.is_dir() and len(os.fsencode(config.control)) <= 107)
