"""An engine (engines.py) across a network namespace, which the network can be cut off from: what is
sent is dropped, and nobody is told."""

import contextlib
import ipaddress
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.engines import Engine

#: Each pair takes four addresses of these, which are for examples (RFC 5737); what this machine has
#: a route to is left alone.
_ADDRESSES: Final = ipaddress.IPv4Network("198.51.100.0/24")
_FAR_PORT: Final = 6379
_FAR_MAC: Final = "02:00:00:00:00:02"
_numbers = itertools.count()


class FarEngine(Engine):
    """In a network namespace of its own, at the other end of a pair of links; for root alone."""

    def __init__(self, folder: Path, **options: Any) -> None:
        number = next(_numbers)
        self.namespace = f"zc{os.getpid():x}n{number}"
        self._near, self._far = f"{self.namespace}a", f"{self.namespace}b"
        near, far = map(str, _free_network().hosts())
        self._owner = os.getpid()
        try:
            _ip("netns", "add", self.namespace)
            _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.namespace)
            _ip("-n", self.namespace, "link", "set", self._far, "address", _FAR_MAC, "up")
            _ip("-n", self.namespace, "addr", "add", f"{far}/30", "dev", self._far)
            _ip("addr", "add", f"{near}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            # Known for good: else the kernel asks who has the address, and says within 3 s that
            # nobody answers, which a filter on the way does not.
            _ip("neigh", "replace", far, "lladdr", _FAR_MAC, "dev", self._near, "nud", "permanent")
            prefix = ["ip", "netns", "exec", self.namespace]
            super().__init__(folder, **{"port": _FAR_PORT, "address": far, "prefix": prefix, **options})
        except BaseException:
            self._remove_network()
            raise

    def cut(self) -> None:
        """What is sent, either way, is dropped from here on, and nobody is told."""
        _ip("-n", self.namespace, "link", "set", self._far, "down")

    def mend(self) -> None:
        """Connections that are left go on as soon as the kernel sends again."""
        _ip("-n", self.namespace, "link", "set", self._far, "up")

    def close(self) -> None:
        super().close()
        if os.getpid() == self._owner:
            self._remove_network()

    def _remove_network(self) -> None:
        for command in (["link", "del", self._near], ["netns", "del", self.namespace]):
            subprocess.run(["ip", *command], capture_output=True, check=False)  # what there is of it


@contextlib.contextmanager
def cut_off(folder: Path, **options: Any) -> Iterator[FarEngine]:
    """One that can be cut off; the test is skipped where there can be none."""
    why_not = why_no_far_engine()
    if why_not:
        pytest.skip(why_not)
    with FarEngine(folder, **options) as engine:
        yield engine


def why_no_far_engine() -> str | None:
    """None if a network namespace with a link to it can be made, else why not."""
    if os.geteuid():
        return "only root makes network namespaces"
    if not shutil.which("ip"):
        return "no network namespace without iproute2"
    name = f"zc{os.getpid():x}n{next(_numbers)}"
    try:
        _ip("netns", "add", name)
        _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        _ip("-n", name, "link", "set", f"{name}b", "up")  # which wants mounts of its own
    except OSError as error:
        return f"no network namespace here: {error}"
    finally:
        for command in (["link", "del", f"{name}a"], ["netns", "del", name]):
            subprocess.run(["ip", *command], capture_output=True, check=False)
    return None


def _free_network() -> ipaddress.IPv4Network:
    """Two hosts' worth that no route of this machine's leads to, but for the default one."""
    routes = subprocess.run(["ip", "-4", "-o", "route"], capture_output=True, text=True, check=True).stdout
    words = [line.split()[0] for line in routes.splitlines()]
    taken = [ipaddress.IPv4Network(word, strict=False) for word in words if word[0].isdigit()]
    free = (network for network in _ADDRESSES.subnets(new_prefix=30) if not any(map(network.overlaps, taken)))
    return next(free)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
