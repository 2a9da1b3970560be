"""What the keeper does about programs that were frozen for a suspend, and that nobody thawed."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from zcache.keeper import frozen
from zcache.keeper.frozen import Forgotten


@pytest.fixture
def group(tmp_path: Path) -> Path:
    group = tmp_path / "a group"
    group.mkdir()
    (group / "cgroup.freeze").write_text("1")
    return group


def thaws_after(record: Path, group: Path) -> Callable[[float], bool]:
    def look(now: float) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.monotonic", lambda: now)
            forgotten.look()
        return (group / "cgroup.freeze").read_text() == "0"

    forgotten = Forgotten(record)
    return look


def written(record: Path, now: float, *groups: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now)
        frozen.write(record, groups, seconds=10)


def test_the_keeper_thaws_what_nobody_thawed_in_time(tmp_path: Path, group: Path) -> None:
    record = tmp_path / "frozen"
    look = thaws_after(record, group)
    assert not look(0)
    written(record, 1, group, tmp_path / "gone")
    assert not look(2) and not look(10.9)
    assert look(11.1) and not record.exists()
    (group / "cgroup.freeze").write_text("1")
    assert not look(1000)  # it is not ours any more


def test_the_keeper_waits_for_the_deadline_of_the_last_record(tmp_path: Path, group: Path) -> None:
    record = tmp_path / "frozen"
    look = thaws_after(record, group)
    written(record, 1, group)
    assert not look(2)
    written(record, 8, group)
    assert not look(12)
    assert look(18.1)


def test_the_keeper_needs_the_records_text_only_once(
    tmp_path: Path, group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later it may be swapped out, and nobody serve it."""
    record = tmp_path / "frozen"
    look = thaws_after(record, group)
    written(record, 1, group)
    assert not look(2)
    monkeypatch.setattr(frozen, "read", lambda _record: pytest.fail("read again"))
    assert not look(3)
    assert look(11.1)


def test_a_record_that_is_no_record_freezes_nobody_for_ever(tmp_path: Path) -> None:
    record = tmp_path / "frozen"
    record.write_bytes(b"what is this")
    assert frozen.read(record) is None
    assert Forgotten(record).look() == 0 and not record.exists()


def test_a_record_of_any_size_comes_back_whole(tmp_path: Path) -> None:
    record, groups = tmp_path / "frozen", [Path(f"/{'group' * 40}/{number}") for number in range(8000)]
    frozen.write(record, groups)
    found = frozen.read(record)
    assert found and found[1] == groups


def test_the_keeper_leaves_the_record_of_a_pre_that_begins_meanwhile(
    tmp_path: Path, group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "frozen"
    look = thaws_after(record, group)
    written(record, 1, group)
    assert not look(2)
    thaw = frozen.thaw

    def another_begins(groups: Iterable[Path]) -> None:
        thaw(groups)
        written(record, 12, group)

    monkeypatch.setattr(frozen, "thaw", another_begins)
    assert look(12) and record.exists()
