"""The swap taken off for a hibernation, and turned on again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from zcache.errors import StillSwappingError, SwapError
from zcache.linux.proc_swaps import SwapEntry
from zcache.swap import area, hibernation, room, swapoff, taken_off
from zcache.swap.taken_off import TakenOff


class Kernel:
    """Which swap areas are on, by their priorities, and whether it hibernates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **on: int) -> None:
        self.on = {f"/dev/{name}": priority for name, priority in on.items()}
        self.done: list[str] = []
        self.stuck = ""
        self.short_kib = 0
        monkeypatch.setattr(taken_off, "ProcSwaps", lambda: self)
        monkeypatch.setattr(room, "shortage_kib", lambda _device, _entries: self.short_kib)
        monkeypatch.setattr(swapoff, "swap_off", self.swap_off)
        monkeypatch.setattr(area, "swap_on", self.swap_on)
        monkeypatch.setattr(hibernation, "allow", lambda: self.done.append("allow"))
        monkeypatch.setattr(hibernation, "refuse", lambda: self.done.append("refuse"))

    def close(self) -> None:
        pass

    def entries(self) -> list[SwapEntry]:
        return [SwapEntry(path, 1024, 100, priority, "partition") for path, priority in self.on.items()]

    def find(self, device: str) -> SwapEntry | None:
        return next((entry for entry in self.entries() if entry.path == device), None)

    def swap_off(self, device: str, _progress: Callable[[], None], _seconds: float) -> None:
        if device == self.stuck:
            raise StillSwappingError("no memory")
        del self.on[device]
        self.done.append(f"off {device}")

    def swap_on(self, device: str, priority: int, discard: bool) -> None:
        self.on[device] = priority
        self.done.append(f"on {device}" + " with discard" * discard)


def off(folder: Path, name: str, may_hibernate: bool = True, is_discarding: bool = False) -> TakenOff:
    return TakenOff(folder / name, f"/dev/{name}", may_hibernate, is_discarding)


def silent(_line: str) -> None:
    pass


def test_off_and_on_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, nbd0=100, nbd1=5, sda2=-2)
    areas = [off(tmp_path, "nbd0"), off(tmp_path, "nbd1", is_discarding=True)]
    taken_off.take_off(areas, silent)
    assert kernel.on == {"/dev/sda2": -2}
    assert kernel.done == ["off /dev/nbd0", "off /dev/nbd1", "allow"]
    taken_off.turn_on(areas)
    taken_off.turn_on(areas)
    assert kernel.on == {"/dev/sda2": -2, "/dev/nbd0": 100, "/dev/nbd1": 5}
    assert kernel.done[3:] == ["refuse", "on /dev/nbd0", "on /dev/nbd1 with discard", "refuse"]
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_elsewhere_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, nbd0=100)
    kernel.short_kib = 1500
    with pytest.raises(SwapError, match="2 MiB more"):
        taken_off.take_off([off(tmp_path, "nbd0")], silent)
    assert kernel.on == {"/dev/nbd0": 100} and "allow" not in kernel.done


def test_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, nbd0=100, nbd1=5)
    kernel.stuck = "/dev/nbd1"
    with pytest.raises(StillSwappingError):
        taken_off.take_off([off(tmp_path, "nbd0"), off(tmp_path, "nbd1")], silent)
    assert kernel.on == {"/dev/nbd0": 100, "/dev/nbd1": 5}
    assert "allow" not in kernel.done and not list(tmp_path.iterdir())


def test_only_for_who_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, nbd0=100)
    with pytest.raises(SwapError, match="without --hibernate"):
        taken_off.take_off([off(tmp_path, "nbd0", may_hibernate=False)], silent)
    assert kernel.on == {"/dev/nbd0": 100}


def test_one_that_was_killed_in_between_is_finished_by_post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its record was written, before the swap was off."""
    kernel = Kernel(monkeypatch, nbd0=100)
    (tmp_path / "nbd0").write_text("100")
    taken_off.turn_on([off(tmp_path, "nbd0")])
    assert kernel.on == {"/dev/nbd0": 100} and not list(tmp_path.iterdir())
