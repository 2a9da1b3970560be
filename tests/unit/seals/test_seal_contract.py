"""Both seals keep one contract; and what encryption promises beyond it."""

import mmap
import random
import threading
from collections.abc import Callable

import pytest

from tests.support.pages import page_with_zpage_of
from tests.support.seals import FRAME_BYTES, new_seal
from zcache.image.image import EPOCH_SHIFT, MAX_EPOCH
from zcache.reclaim.flight import flights_frames
from zcache.seals import Seal

#: Births of the first server and of the last one that there can be.
SYNC_BATCH_FRAMES, BATCH_FRAMES = flights_frames(FRAME_BYTES)
BIRTHS = [1, (1 << EPOCH_SHIFT) + 77, (MAX_EPOCH << EPOCH_SHIFT) + (1 << EPOCH_SHIFT) - BATCH_FRAMES]


@pytest.fixture(params=["no", "yes"])
def seal(request: pytest.FixtureRequest) -> Seal:
    made = new_seal(request.param)
    made.populate()
    return made


def some_frames(rng: random.Random, count: int) -> list[memoryview]:
    """In memory as RAM slots are."""
    memory = memoryview(mmap.mmap(-1, count * FRAME_BYTES))
    views = [memory[start : start + FRAME_BYTES] for start in range(0, len(memory), FRAME_BYTES)]
    for view in views:
        view[:] = page_with_zpage_of(rng, 2000)
    return views


def below(seal: Seal, frames: list[int], birth: int, views: list[memoryview]) -> tuple[list[bytes], list[bytes]]:
    """What a tier gets, and the seals."""
    with seal.sealed(frames, birth, views) as (bodies, seals):
        return [bytes(body) for body in bodies], seals


def opened(seal: Seal, frame: int, birth: int, tag: bytes, body: bytes) -> bytes | None:
    read = bytearray(body)
    return bytes(read) if seal.opens(frame, birth, tag, memoryview(read)) else None


@pytest.mark.parametrize("birth", BIRTHS)
@pytest.mark.parametrize("count", [1, 2, SYNC_BATCH_FRAMES, SYNC_BATCH_FRAMES + 1, BATCH_FRAMES])
def test_what_was_sealed_opens(seal: Seal, rng: random.Random, count: int, birth: int) -> None:
    views = some_frames(rng, count)
    frames = [rng.randrange(1, 1 << 31) for _ in views]
    before = [bytes(view) for view in views]
    bodies, tags = below(seal, frames, birth, views)
    assert [bytes(view) for view in views] == before, "RAM slots were written"
    assert all(len(body) == FRAME_BYTES for body in bodies) and all(len(tag) == seal.seal_bytes for tag in tags)
    read = [
        opened(seal, frame, birth + index, tag, body)
        for index, (frame, tag, body) in enumerate(zip(frames, tags, bodies, strict=True))
    ]
    assert read == before


def flip(data: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


@pytest.mark.parametrize("what", ["body", "seal", "birth", "frame"])
def test_any_flipped_bit_is_refused(seal: Seal, rng: random.Random, what: str) -> None:
    view = some_frames(rng, 1)
    for _ in range(200):
        frame, birth = rng.randrange(1, 1 << 31), rng.getrandbits(64)
        (body,), (tag,) = below(seal, [frame], birth, view)
        match what:
            case "body":
                body = flip(body, rng)
            case "seal":
                tag = flip(tag, rng)
            case "birth":
                birth ^= 1 << rng.randrange(64)
            case "frame":
                frame ^= 1 << rng.randrange(31)
        assert opened(seal, frame, birth, tag, body) is None


def test_another_frames_bytes_are_refused(seal: Seal, rng: random.Random) -> None:
    bodies, tags = below(seal, [5, 6], 10, some_frames(rng, 2))
    assert opened(seal, 5, 10, tags[0], bodies[1]) is None
    assert opened(seal, 6, 11, tags[1], bodies[0]) is None


def test_an_older_version_is_refused(seal: Seal, rng: random.Random) -> None:
    """The bytes on the disk as they once were, whole, under the seal of what was written last."""
    views = some_frames(rng, 1)
    old, _ = below(seal, [5], 10, views)
    views[0][0] ^= 1
    _, new_tags = below(seal, [5], 11, views)
    assert opened(seal, 5, 11, new_tags[0], old[0]) is None


def test_several_threads_at_once(seal: Seal, seed: int) -> None:
    """Flights of both sizes, and reads, share one seal's memory and never each other's bytes."""
    wrong: list[str] = []

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        views = some_frames(rng, 40)
        for turn in range(40):
            count = rng.randrange(1, len(views) + 1)
            first = (number * 100 + turn) * 1000 + 1
            frames = list(range(1, count + 1))
            bodies, tags = below(seal, frames, first, views[:count])
            for index in range(count):
                if opened(seal, index + 1, first + index, tags[index], bodies[index]) != bytes(views[index]):
                    wrong.append(f"{number}: {turn}, {index}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_flights_memory_is_free_again_when_its_write_failed(seal: Seal, rng: random.Random) -> None:
    views = some_frames(rng, 1)
    for _ in range(3):
        with pytest.raises(OSError, match="no disk"), seal.sealed([1], 1, views):
            raise OSError("no disk")


def test_frames_are_written_from_aligned_memory(seal: Seal, rng: random.Random) -> None:
    """O_DIRECT asks for it."""
    import ctypes

    with seal.sealed([1, 2], 1, some_frames(rng, 2)) as (bodies, _):
        assert [ctypes.addressof(ctypes.c_char.from_buffer(body)) % 512 for body in bodies] == [0, 0]


def test_a_small_flight_in_the_background_has_no_puts_wait_for_it(rng: random.Random) -> None:
    """It may be to a network. What two flights share, one of them waits for."""
    import ctypes

    seal = new_seal("yes")
    addresses: list[set[int]] = []
    for most_frames in (SYNC_BATCH_FRAMES, BATCH_FRAMES):
        with seal.sealed([1, 2], 1, some_frames(rng, 2), most_frames) as (bodies, _):
            addresses.append({ctypes.addressof(ctypes.c_char.from_buffer(body)) for body in bodies})
    assert addresses[0].isdisjoint(addresses[1])


def test_ciphertexts_tell_nothing_and_depend_on_key_birth_and_frame(rng: random.Random) -> None:
    view = some_frames(rng, 1)
    seal = new_seal("yes")
    variants: list[Callable[[], tuple[list[bytes], list[bytes]]]] = [
        lambda: below(seal, [1], 1, view),
        lambda: below(seal, [1], 2, view),
        lambda: below(new_seal("yes", bytes(32)), [1], 1, view),
    ]
    bodies = [variant()[0][0] for variant in variants]
    assert len(set(bodies)) == 3 and bytes(view[0]) not in bodies
    assert below(seal, [1], 1, view) != below(seal, [2], 1, view)
    zeros = [memoryview(bytearray(FRAME_BYTES))]
    assert all(abs(body.count(0) - 16) < 40 for body in below(seal, [1], 3, zeros)[0])
    assert opened(new_seal("yes", bytes(32)), 1, 1, variants[0]()[1][0], bodies[0]) is None
