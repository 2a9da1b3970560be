"""What others change is put back, and not while nobody serves."""

from pathlib import Path

import pytest

from tests.support.keepers import Looked
from zcache.keeper import surroundings


class LostGroup:
    """A control group whose limit is taken away again and again."""

    path = Path("/sys/fs/cgroup/run-zcache")

    def __init__(self) -> None:
        self.looks = self.restored = 0
        self.failure: OSError | None = None

    def holds(self) -> bool:
        self.looks += 1
        return False

    def put_back(self) -> None:
        if self.failure:
            raise self.failure
        self.restored += 1


def test_the_limit_of_its_group_is_put_back(looked: Looked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a second, and not at each turn; and a group that never had one is not looked at."""
    group = LostGroup()
    monkeypatch.setattr(surroundings, "GROUP_SECONDS", 1e6)
    looked.keeper.surroundings.group = group  # type: ignore[assignment]
    looked.keeper.surroundings.next_group_seconds = 0.0
    looked.turns(5)
    assert (group.looks, group.restored) == (1, 1)
    assert looked.said[-1].endswith("put back") and "memory.swap.max=0" in looked.said[-1]
    group.failure = OSError(16, "Device or resource busy")
    for _ in range(3):
        looked.keeper.surroundings.next_group_seconds = 0.0
        looked.turns(1)
    lines = [line for line in looked.said if "cannot be put back: Device or resource busy" in line]
    assert len(lines) == 1 and group.looks == 4
    assert looked.replaces_a_server_that_dies()


def test_what_others_change_is_put_back_while_the_kernel_swaps_to_a_server(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, asked = looked.keeper, []

    def put_back(pids: list[int]) -> list[str]:
        asked.append(pids)
        return ["it was changed: put back"]

    monkeypatch.setattr(keeper.surroundings.watched, "put_back", put_back)
    looked.turns(2)
    assert asked == []  # there is no swap
    monkeypatch.setattr(keeper.device, "is_swapping", lambda: True)
    looked.turns(1)
    assert asked == [[looked.first.pid, looked.standby.pid]]
    looked.turns(2)
    assert len(asked) == 1  # once a second
    keeper.surroundings.next_watch_seconds = 0
    monkeypatch.setattr(keeper.succession, "is_served", lambda: False)
    looked.turns(1)
    assert len(asked) == 1  # not while nobody serves
    monkeypatch.undo()
    assert looked.said.count("it was changed: put back") == 1
