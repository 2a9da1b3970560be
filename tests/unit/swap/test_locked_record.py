"""A record that is read and written by one at a time."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from zcache.swap.locked_record import locked


def test_one_that_its_last_holder_removes_while_it_is_looked_at_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record"
    look, removals = os.fstat, iter([record])

    def removed_meanwhile(descriptor: int) -> os.stat_result:
        for path in removals:
            path.unlink()
        return look(descriptor)

    monkeypatch.setattr(os, "fstat", removed_meanwhile)
    with locked(record, lambda _: SimpleNamespace(), lambda: SimpleNamespace(held=1), "do it") as (held, save):
        assert held.held == 1
        save()
    assert record.read_text() == '{"held": 1}\n'
