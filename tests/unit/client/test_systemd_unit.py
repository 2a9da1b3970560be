"""The unit for where zcache lies."""

import sys
from pathlib import Path

import pytest

from zcache.client import systemd_unit
from zcache.client.command import main
from zcache.errors import BadInput

REPOSITORY = Path(__file__).resolve().parents[3]


def test_from_the_sources_it_names_their_scripts() -> None:
    shipped = (REPOSITORY / "scripts/systemd/zcache.service").read_text()
    assert systemd_unit.unit() == shipped.replace("@ROOT@", str(REPOSITORY))
    assert systemd_unit.needrestart() == (REPOSITORY / "scripts/systemd/needrestart.conf").read_text()


@pytest.mark.parametrize("name", ["a'b", 'a"b', "100%", "$HOME", "a\\b"])
def test_a_place_that_a_unit_cannot_name_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(systemd_unit, "sources", lambda: Path("/srv") / name)
    with pytest.raises(BadInput, match="a unit cannot name this"):
        systemd_unit.unit()
    monkeypatch.setattr(sys, "argv", ["zcache", "systemd-unit"])
    assert main() == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"zcache: /srv/{name}: ")
