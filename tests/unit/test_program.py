"""Which mappings are the program's."""

from pathlib import Path

import pytest

from zcache.hardening import program

MAPS = """\
7f0000000000-7f0000010000 r-xp 00000000 08:01 123       /srv/my swap/.venv/lib/_block.cpython-311-x86_64-linux-gnu.so
7f0000010000-7f0000012000 rw-p 00000000 00:00 0 
7f0000020000-7f0000030000 r-xp 00000000 08:01 124       /srv/libc.so.6 of mine/other.so
7f0000030000-7f0000031000 rw-p 00000000 00:00 0 
"""  # noqa: W291 (as the kernel writes it)


def test_an_object_is_known_by_its_name_in_a_folder_with_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _path: MAPS)
    assert [*program._mappings()] == [
        (0x7F0000000000, 0x7F0000010000, False),
        (0x7F0000010000, 0x7F0000012000, True),
    ]
