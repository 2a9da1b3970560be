"""Every codec gives back what it was given, and says so when it cannot."""

import random
import threading

import pytest

from tests.support.pages import any_page, page_with_zpage_of, raw_page, zero_page
from zcache.errors import BadInput, PageDamaged
from zcache.pages.codec import decoders, decompress, parse_codec

CODECS = ["lz4", "lz4:1", "lz4:16", "lz4:65537", "zstd", "zstd:1", "zstd:3", "zstd:19", "zstd:-7"]


@pytest.mark.parametrize("name", CODECS)
def test_round_trip(name: str, rng: random.Random) -> None:
    codec = parse_codec(name)
    for page in [zero_page(), raw_page(rng), *(any_page(rng) for _ in range(300))]:
        body = codec.compress(memoryview(page))
        assert decompress(codec.id, body) == page


@pytest.mark.parametrize("name", [name for name in CODECS if name != "lz4:65537"])  # it skips a whole page
def test_compressible_pages_get_smaller(name: str, rng: random.Random) -> None:
    codec = parse_codec(name)
    assert len(codec.compress(memoryview(page_with_zpage_of(rng, 500)))) < 700


@pytest.mark.parametrize("name", ["lz4", "zstd"])
def test_damage_is_an_error_or_a_whole_page(name: str, rng: random.Random) -> None:
    codec = parse_codec(name)
    refused = 0
    for _ in range(500):
        body = bytearray(codec.compress(memoryview(page_with_zpage_of(rng, 800))))
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        del body[rng.randrange(len(body) // 2, len(body)) :]
        try:
            assert len(decompress(codec.id, bytes(body))) == 4096
        except PageDamaged:
            refused += 1
    assert refused


@pytest.mark.parametrize("name", ["lz4", "zstd:1"])
def test_two_threads_at_once(name: str, seed: int) -> None:
    codec = parse_codec(name)
    wrong: list[int] = []

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        for _ in range(1000):
            page = any_page(rng)
            if decompress(codec.id, codec.compress(memoryview(page))) != page:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_raw_and_word_decoders() -> None:
    assert decoders[0](b"x" * 4096) == b"x" * 4096
    assert decoders[1](b"12345678") == b"12345678" * 512


@pytest.mark.parametrize(
    "name", ["", "lzo", "lz4:0", "lz4:65538", "lz4:fast", "zstd:0", "zstd:20", "zstd:-8", "zstd:", "LZ4"]
)
def test_refusals_name_the_key_and_the_choices(name: str) -> None:
    with pytest.raises(BadInput) as refusal:
        parse_codec(name)
    assert str(refusal.value).startswith(f"codec={name}:")
    assert "lz4:ACCELERATION" in str(refusal.value)
