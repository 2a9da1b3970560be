"""Settings that are held while any swap is on."""

import errno
import os
from pathlib import Path

import pytest

from zcache.errors import SwapError
from zcache.swap.sysctls import MIN_FREE, changed, hold, release

BOOST = "vm/watermark_boost_factor"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sys/vm").mkdir(parents=True)
    (tmp_path / "sys" / BOOST).write_text("15000\n")
    (tmp_path / "sys" / MIN_FREE).write_text("4096\n")
    return tmp_path / "sys"


def settings(root: Path) -> tuple[str, str]:
    return (root / BOOST).read_text().strip(), (root / MIN_FREE).read_text().strip()


def new_holder(folder: Path, name: str) -> Path:
    (folder / name).touch()
    return folder / name


def test_held_and_put_back(root: Path, tmp_path: Path) -> None:
    record, holder = tmp_path / "record", new_holder(tmp_path, "a")
    hold(holder, root, record)
    assert settings(root) == ("0", "16384") and record.stat().st_mode & 0o777 == 0o600
    assert release(holder, root, record) == []
    assert settings(root) == ("15000", "4096") and not record.exists()
    assert release(holder, root, record) == []


def test_what_a_keeper_had_lent_when_it_was_killed_is_put_back(root: Path, tmp_path: Path) -> None:
    """By its own swap-down for the other area that is on, and by the last one for all."""
    record = tmp_path / "record"
    a, b = (new_holder(tmp_path, name) for name in "ab")
    for holder in (a, b):
        hold(holder, root, record)
    (root / MIN_FREE).write_text("81920\n")
    assert release(a, root, record, may_be_lent=True) == []
    assert settings(root) == ("0", "16384")
    (root / MIN_FREE).write_text("4096\n")
    assert release(b, root, record, may_be_lent=True) == []
    assert settings(root) == ("15000", "4096") and not record.exists()


def test_the_reserve_is_only_raised(root: Path, tmp_path: Path) -> None:
    (root / MIN_FREE).write_text("99999\n")
    (root / BOOST).unlink()
    hold(new_holder(tmp_path, "a"), root, tmp_path / "record")
    assert (root / MIN_FREE).read_text() == "99999" and not (root / BOOST).exists()


@pytest.mark.parametrize(("first", "second"), ["ab", "ba"])
def test_the_last_of_two_areas_puts_them_back(root: Path, tmp_path: Path, first: str, second: str) -> None:
    record = tmp_path / "record"
    for name in "ab":
        hold(new_holder(tmp_path, name), root, record)
    release(tmp_path / first, root, record)
    assert settings(root) == ("0", "16384")
    release(tmp_path / second, root, record)
    assert settings(root) == ("15000", "4096") and not record.exists()


def test_an_area_that_is_gone_holds_nothing(root: Path, tmp_path: Path) -> None:
    record = tmp_path / "record"
    hold(new_holder(tmp_path, "killed"), root, record)
    hold(new_holder(tmp_path, "a"), root, record)
    (tmp_path / "killed").unlink()
    release(tmp_path / "a", root, record)
    assert settings(root) == ("15000", "4096")


def test_what_was_there_before_a_killed_area_is_not_forgotten(root: Path, tmp_path: Path) -> None:
    record = tmp_path / "record"
    hold(new_holder(tmp_path, "killed"), root, record)
    (tmp_path / "killed").unlink()
    hold(new_holder(tmp_path, "a"), root, record)
    release(tmp_path / "a", root, record)
    assert settings(root) == ("15000", "4096")


def test_what_somebody_else_set_meanwhile_stays(root: Path, tmp_path: Path) -> None:
    record, holder = tmp_path / "record", new_holder(tmp_path, "a")
    hold(holder, root, record)
    (root / MIN_FREE).write_text("65536\n")
    assert release(holder, root, record) == []
    assert settings(root) == ("15000", "65536")


def test_one_that_cannot_be_put_back_is_said_and_the_other_is_put_back(root: Path, tmp_path: Path) -> None:
    record, holder = tmp_path / "record", new_holder(tmp_path, "a")
    hold(holder, root, record)
    (root / BOOST).unlink()
    (failure,) = release(holder, root, record)
    assert "watermark_boost_factor could not be put back to 15000" in failure
    assert (root / MIN_FREE).read_text() == "4096" and not record.exists()


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "5", "\0", "[" * 60_000, '{"holder": []}', '{"holders": 5}', '{"holders": [5]}'),
        '{"before": {"kernel/core_pattern": "|x"}, "ours": {"kernel/core_pattern": "core"}}',
        '{"before": {"vm/min_free_kbytes": "1"}, "ours": {}}',
        '{"before": {"vm/min_free_kbytes": 1}, "ours": {"vm/min_free_kbytes": 2}}',
    ],
)
def test_a_damaged_record_is_one_line_and_sets_nothing(root: Path, tmp_path: Path, text: str) -> None:
    """Turning a swap off says it and goes on."""
    record, holder = tmp_path / "record", new_holder(tmp_path, "a")
    record.write_text(text)
    with pytest.raises(SwapError, match="record is damaged") as caught:
        hold(holder, root, record)
    (line,) = release(holder, root, record)
    assert line == str(caught.value) and len(line.splitlines()) == 1
    assert settings(root) == ("15000", "4096") and record.read_text() == text


def test_a_record_whose_writer_was_killed_is_read(root: Path, tmp_path: Path) -> None:
    """Between the writing of a shorter text and the cutting off of the longer one's rest."""
    record, holder = tmp_path / "record", new_holder(tmp_path, "a")
    hold(holder, root, record)
    record.write_text(record.read_text() + 'of/a/longer/text"]}')
    assert release(holder, root, record) == []
    assert settings(root) == ("15000", "4096") and not record.exists()


def test_a_record_that_is_lost_with_the_swap_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in a tmpfs: what was swapped out to a server that has died cannot be read."""
    record, holder = tmp_path / "record", new_holder(tmp_path, "a")
    hold(holder, root, record)

    def lost(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", lost)
    (failure,) = release(holder, root, record)
    assert "remove it, and set" in failure and "Input/output error" in failure
    with pytest.raises(SwapError, match="remove it, and set"):
        hold(holder, root, record)


def test_what_another_has_changed_is_told_to_its_holders_only(root: Path, tmp_path: Path) -> None:
    """A package's `sysctl --system`, say; more of the reserve is no harm."""
    record, holder = tmp_path / "record", new_holder(tmp_path, "a")
    assert changed(holder, root, record) == []
    hold(holder, root, record)
    (root / MIN_FREE).write_text("99999\n")
    assert changed(holder, root, record) == []
    (root / MIN_FREE).write_text("2000\n")
    (line,) = changed(holder, root, record)
    assert line.startswith("vm.min_free_kbytes is 2000") and line.endswith("sysctl vm.min_free_kbytes=16384")
    (root / BOOST).write_text("15000\n")
    assert len(changed(holder, root, record)) == 2
    assert changed(new_holder(tmp_path, "b"), root, record) == []
    record.write_text("damaged")
    assert changed(holder, root, record) == []
