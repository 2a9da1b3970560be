"""From another network namespace than the first the kernel's nbd driver cannot be reached: that is
what is said."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from zcache.errors import SwapError
from zcache.keeper.state import StateFolder
from zcache.swap import area, nbd_device, nbd_netlink
from zcache.swap.buildup import Buildup, Options
from zcache.swap.nbd_device import is_in_another_network

REPOSITORY = Path(__file__).resolve().parents[3]


def test_it_is_known_by_that_of_pid_1(tmp_path: Path) -> None:
    assert not is_in_another_network(tmp_path)
    for pid in ("self", "1"):
        (tmp_path / pid / "ns").mkdir(parents=True)
        (tmp_path / pid / "ns/net").write_text(pid)
    assert is_in_another_network(tmp_path)
    (tmp_path / "self/ns/net").unlink()
    os.link(tmp_path / "1/ns/net", tmp_path / "self/ns/net")
    assert not is_in_another_network(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a network namespace")
def test_swap_up_says_so_before_it_starts_anything(tmp_path: Path) -> None:
    words = [sys.executable, "-P", "-m", "zcache.swap.up", "size=64M", "budget=80M", f"--state-folder={tmp_path}/state"]
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if made.returncode or not os.access("/proc/1/ns/net", os.F_OK):
        pytest.skip(f"no network namespace, or none to compare with: {made.stderr.decode().strip()}")
    done = subprocess.run(
        ["unshare", "--net", *words], capture_output=True, text=True, check=False, timeout=60, cwd=REPOSITORY
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "nsenter --net=/proc/1/ns/net" in done.stderr and "modprobe" not in done.stderr


def test_no_module_is_loaded_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_device.is_in_another_network, "__defaults__", (tmp_path,))
    test_it_is_known_by_that_of_pid_1(tmp_path)
    (tmp_path / "self/ns/net").unlink()
    (tmp_path / "self/ns/net").write_text("")
    monkeypatch.setattr(area, "run", lambda _command: pytest.fail("a program was started"))
    with pytest.raises(SwapError, match="network namespace"):
        Buildup(Options(), StateFolder(tmp_path), lambda _line: None).load_driver()


@pytest.mark.parametrize(("has_driver", "said"), [(True, "network namespace"), (False, "modprobe nbd")])
def test_a_family_that_is_not_there_though_the_driver_is(
    monkeypatch: pytest.MonkeyPatch, has_driver: bool, said: str
) -> None:
    """In a container, where PID 1 is in the same namespace."""

    class Socket:
        def __enter__(self) -> "Socket":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def bind(self, *_: object) -> None:
            raise NetlinkError(errno.ENOENT)

    monkeypatch.setattr(nbd_netlink, "GenericNetlinkSocket", Socket)
    monkeypatch.setattr(nbd_netlink, "has_driver", lambda: has_driver)
    with pytest.raises(SwapError, match=said):
        nbd_netlink.disconnect(0)
