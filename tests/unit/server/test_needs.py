"""What a server is said to need, with engines and without."""

from pathlib import Path
from typing import Any, Final

import pytest

from zcache.hardening import limits
from zcache.image.image import SEAL_BYTES
from zcache.remote.peer import READERS
from zcache.remote.tables import INCARNATIONS, TAIL_BYTES
from zcache.server.assembly import geometry_of
from zcache.server.config import Config, parse_config
from zcache.server.needs import REMOTE_BYTES, check_available, check_limits, kept_free, thread_count

#: No TCP connection is made to them here.
ENGINES: Final = [("remote", "redis://198.51.100.1"), ("remote", "redis://198.51.100.2"), ("remote_budget", "256M")]
FRAME_BYTES: Final = 64 << 10
#: Of a frame in its table: home, below, seal and birth; of a slot: generation, holders and tail.
FRAME_ROW_BYTES: Final = 4 + 4 + SEAL_BYTES["yes"] + 8
SLOT_ROW_BYTES: Final = 4 + 2 + TAIL_BYTES


def configured(*words: tuple[str, str]) -> Config:
    return parse_config([("size", "512M"), ("budget", "64M"), ("encrypt", "yes"), *words])


@pytest.fixture
def with_disk(tmp_path: Path) -> Config:
    return configured(("backing", f"{tmp_path}/backing"))


@pytest.fixture
def with_two_copies(tmp_path: Path) -> Config:
    return configured(("backing", f"{tmp_path}/backing"), *ENGINES)


@pytest.fixture
def with_one_copy(tmp_path: Path) -> Config:
    return configured(("backing", f"{tmp_path}/backing"), *ENGINES, ("remote_copies", "1"))


def test_what_engines_hold_twice_need_not_be_on_the_disk(with_disk: Config, with_two_copies: Config) -> None:
    assert with_two_copies.remote_frames == (256 << 20) // FRAME_BYTES
    assert with_disk.below_bytes - with_two_copies.below_bytes == 256 << 20


def test_what_engines_hold_once_is_on_the_disk_too(with_disk: Config, with_one_copy: Config) -> None:
    assert with_one_copy.remote_frames == 0
    assert with_disk.below_bytes == with_one_copy.below_bytes


def test_a_frame_has_its_row_wherever_it_is(with_disk: Config, with_two_copies: Config, with_one_copy: Config) -> None:
    """As many frames below as before, of which engines hold some: so the same rows of frames; and
    those of slots at engines beside them."""
    before = kept_free(with_disk)
    slots = {"two": with_two_copies.remote_frames, "one": with_one_copy.below_bytes // FRAME_BYTES}
    incarnations_bytes = 4 * 8 * INCARNATIONS
    for name, config in (("two", with_two_copies), ("one", with_one_copy)):
        more_bytes = SLOT_ROW_BYTES * (slots[name] + 1) + incarnations_bytes
        assert kept_free(config) == before + more_bytes + REMOTE_BYTES


def test_without_a_disk_frames_at_engines_have_rows() -> None:
    alone = configured(("overcommit", "yes"), ("allocator", "log"), *ENGINES)
    assert alone.backing is None
    less = configured(("overcommit", "yes"), ("allocator", "log"), *ENGINES[:2], ("remote_budget", "128M"))
    slots = (128 << 20) // FRAME_BYTES
    disk_slots = (alone.below_bytes - less.below_bytes) // FRAME_BYTES  # what would have to be on one
    assert kept_free(alone) - kept_free(less) == slots * SLOT_ROW_BYTES + (slots + disk_slots) * FRAME_ROW_BYTES


def test_limits_and_groups_are_asked_for_what_engines_add(
    monkeypatch: pytest.MonkeyPatch, with_disk: Config, with_two_copies: Config
) -> None:
    asked: list[dict[str, Any]] = []

    def note(**words: Any) -> None:
        asked[-1] |= words

    monkeypatch.setattr(limits, "check", lambda **words: note(**words))
    monkeypatch.setattr(limits, "check_promise", lambda needed_bytes, _: note(promised=needed_bytes))
    monkeypatch.setattr(limits, "check_groups", lambda parts, _: note(groups=parts))
    monkeypatch.setattr(limits, "check_tasks", lambda needed, _: note(tasks=needed))
    for config in (with_disk, with_two_copies):
        asked.append({})
        check_limits(config, is_successor=False, client_threads=4)
    before, after = asked
    tables_bytes = kept_free(with_two_copies) - kept_free(with_disk) - REMOTE_BYTES
    for name in ("mapped_bytes", "private_bytes", "promised"):
        assert after[name] - before[name] == REMOTE_BYTES + tables_bytes
    assert after["groups"]["engines"] == REMOTE_BYTES and "engines" not in before["groups"]
    assert after["groups"]["tables"] - before["groups"]["tables"] == tables_bytes
    assert after["more"] - before["more"] == 3 * (READERS + 2)
    assert after["tasks"] - before["tasks"] == 2
    backing = f"backing={with_disk.backing}"
    assert after["files"][backing] == with_two_copies.below_bytes + FRAME_BYTES


def test_a_cluster_and_many_engines_have_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    more: list[int] = []
    monkeypatch.setattr(limits, "check", lambda **words: more.append(words["more"]))
    cluster = [("remote", "redis://198.51.100.1?cluster=yes"), ("remote_budget", "256M")]
    five = [("remote", f"redis://198.51.100.{n}") for n in range(1, 6)]
    for words in (cluster, [*five, ("remote_budget", "256M")]):
        check_limits(configured(("overcommit", "yes"), *words), is_successor=False, client_threads=4)
    assert more == [3 * (READERS + 2), 5 * (READERS + 2)]


def test_threads(with_disk: Config, with_two_copies: Config, with_one_copy: Config) -> None:
    """One that looks after engines; and where they are a place of their own, one that moves the
    coldest frames on. (tests/nbd/test_without_remote.py counts them.)"""
    assert thread_count(with_two_copies, 4) - thread_count(with_disk, 4) == 2
    assert thread_count(with_one_copy, 4) - thread_count(with_disk, 4) == 1


def test_a_successor_is_refused_for_nothing(monkeypatch: pytest.MonkeyPatch, with_two_copies: Config) -> None:
    monkeypatch.setattr("zcache.server.needs.meminfo.read_bytes", lambda _: 0)
    check_limits(with_two_copies, is_successor=True, client_threads=10**9)
    check_available(with_two_copies, is_successor=True)


def test_geometry_names_the_slots_at_engines(with_disk: Config, with_two_copies: Config, with_one_copy: Config) -> None:
    assert geometry_of(with_disk, 100).remote_slots == 0
    assert geometry_of(with_two_copies, 5000).remote_slots == with_two_copies.remote_frames
    assert geometry_of(with_one_copy, 5000).remote_slots == 5000, "any of the disk's may have a copy"
