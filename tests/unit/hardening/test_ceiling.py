"""A ceiling on this process's private memory, which is real, by a control group, which is not."""

import errno
import mmap
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from zcache.hardening import ceiling
from zcache.hardening.ceiling import KEPT_BYTES, LEAST_BYTES, Ceiling
from zcache.hardening.limits import data_bytes
from zcache.linux.group_limits import GroupLimits, Room

MIB = 1 << 20


class OneGroup(GroupLimits):
    """That leaves so much; None: it has no limit."""

    def __init__(self, left_bytes: int | None) -> None:
        super().__init__(Path("/nowhere"), Path("/nowhere"))
        self.left_bytes = left_bytes

    def rooms(self) -> tuple[Room, ...]:
        if self.left_bytes is None:
            return ()
        return (Room(1 << 29, 0, "/g/memory.high"), Room(1 << 30, self.left_bytes, "/g/memory.max"))


@pytest.fixture(autouse=True)
def before() -> Iterator[tuple[int, int]]:
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    yield limits
    resource.setrlimit(resource.RLIMIT_DATA, limits)


def can_take(size_bytes: int) -> bool:
    """Whether so much can be mapped, as malloc would; what the process has free does not count."""
    try:
        mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        assert error.errno == errno.ENOMEM, error
        return False
    return True


def soft_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def test_what_the_group_has_no_room_for_is_refused_and_no_more(before: tuple[int, int]) -> None:
    group = OneGroup(KEPT_BYTES + 16 * MIB)
    here = Ceiling(group)
    here.follow()
    assert not can_take(32 * MIB) and can_take(8 * MIB)
    group.left_bytes = KEPT_BYTES + 100 * MIB
    here.follow()
    assert can_take(32 * MIB)
    group.left_bytes = None
    here.follow()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize("left_bytes", [8 * MIB, 0])
def test_the_server_itself_may_have_a_little_however_little_is_left(left_bytes: int) -> None:
    Ceiling(OneGroup(left_bytes)).follow()
    assert LEAST_BYTES - MIB < soft_limit() - data_bytes() <= LEAST_BYTES + MIB
    assert can_take(MIB) and not can_take(8 * MIB)


def test_without_limits_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("there is nothing to set"))
    Ceiling(OneGroup(None)).follow()
    Ceiling(None).follow()


def test_what_cannot_be_read_or_set_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise ValueError("not allowed to raise maximum limit")  # as CPython says EPERM

    with monkeypatch.context() as patch:
        patch.setattr(ceiling, "data_bytes", lambda: 0)
        patch.setattr(resource, "setrlimit", lambda *_: pytest.fail("what is used is not known"))
        Ceiling(OneGroup(1 << 30)).follow()
    monkeypatch.setattr(resource, "setrlimit", refuse)
    Ceiling(OneGroup(1 << 30)).follow()


def test_an_inherited_hard_limit_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    most = data_bytes() + 4 * MIB
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    Ceiling(OneGroup(1 << 30)).follow()
    assert asked == [(most, most)]
