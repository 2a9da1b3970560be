"""The device: its driver, what it is given, what sysfs says of it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from zcache.errors import SwapError
from zcache.keeper.state import StateFolder
from zcache.swap import area, nbd_device
from zcache.swap.buildup import Buildup, Options
from zcache.swap.handshake import Export
from zcache.swap.nbd_device import NbdDevice


@pytest.mark.parametrize(
    ("export", "words"),
    [
        (Export(1 << 30, 0b11), "read-only"),
        (Export(4096, 1), "too small"),
        (Export(1 << 30, 1), "--discard"),
    ],
)
def test_an_export_that_will_not_do(export: Export, words: str) -> None:
    with pytest.raises(SwapError, match=words):
        export.check(discard=True)


def test_a_device_about_which_nothing_can_be_learnt_is_not_taken_for_one_that_is_free(tmp_path: Path) -> None:
    device = NbdDevice("/dev/nbd0", tmp_path)
    assert device.attached_by_pid() is None
    (tmp_path / "nbd0" / "pid").mkdir(parents=True)
    with pytest.raises(SwapError, match="cannot be read"):
        device.attached_by_pid()


DEVICES = "Character devices:\n  1 mem\n 42 nbd\n\nBlock devices:\n  7 loop\n{}254 virtblk\n"


def test_a_driver_that_is_built_in_needs_no_modprobe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which fails, for there is no folder of modules."""
    devices = tmp_path / "devices"
    tried: list[str] = []

    def modprobe(command: Sequence[str], brings: str = "") -> None:
        tried.append(" ".join(command))
        devices.write_text(DEVICES.format(brings))
        raise SwapError("modprobe failed: FATAL: Module nbd not found in directory /lib/modules/6.1.0")

    monkeypatch.setattr(nbd_device.has_driver, "__defaults__", (devices,))
    monkeypatch.setattr(area, "run", modprobe)
    machine = Buildup(Options(), StateFolder(tmp_path), lambda _line: None)
    devices.write_text(DEVICES.format(" 43 nbd\n"))
    machine.load_driver()
    assert tried == []
    devices.unlink()
    with pytest.raises(SwapError, match=r"no nbd driver, boot one that has \(modprobe failed: .* not found"):
        machine.load_driver()
    assert tried == ["modprobe nbd"]
    monkeypatch.setattr(area, "run", lambda command: modprobe(command, " 43 nbd\n"))  # another loads it just then
    devices.write_text(DEVICES.format(""))
    machine.load_driver()


def test_how_soon_a_request_is_sent_again(tmp_path: Path) -> None:
    timeout = tmp_path / "nbd3" / "queue" / "io_timeout"
    NbdDevice("/dev/nbd3", tmp_path).resend_after(5)  # a sysfs that has no such file
    timeout.parent.mkdir(parents=True)
    timeout.write_text("30000")
    NbdDevice("/dev/nbd3", tmp_path).resend_after(0)
    assert timeout.read_text() == "30000"
    NbdDevice("/dev/nbd3", tmp_path).resend_after(5)
    assert timeout.read_text() == "5000"
