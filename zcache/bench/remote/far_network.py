"""A network of namespaces, each of which can be cut off from the others. Root only.

Each has one link, to a bridge. A link that is taken down drops what is sent either way, and nobody
is told: whoever has sent waits, as with a switch that has died. Addresses are those for examples
(RFC 5737), and of them only such as no route of this machine leads to.
"""

import ipaddress
import os
import shutil
import subprocess
from typing import Final

from zcache.errors import EnvironmentProblem

_ADDRESSES: Final = ipaddress.IPv4Network("203.0.113.0/24")
#: Of one network: 13 namespaces.
_PREFIX: Final = 28


class FarNetwork:
    """Nobody has joined it yet; `close` it."""

    def __init__(self) -> None:
        if why := why_no_network():
            raise EnvironmentProblem(why)
        self._name = f"zb{os.getpid():x}"
        self._joined: list[int] = []
        self._network = _free_network()
        self._hosts = list(self._network.hosts())
        try:
            _ip("link", "add", self._name, "type", "bridge")
            _ip("addr", "add", f"{self._hosts[0]}/{_PREFIX}", "dev", self._name)
            _ip("link", "set", self._name, "up")
        except EnvironmentProblem:
            self.close()
            raise

    def join(self, number: int) -> str:
        """A namespace, and its address."""
        address, hardware = str(self._hosts[number + 1]), f"02:00:00:00:01:{number:02x}"
        near, far, namespace = f"{self._name}a{number}", f"{self._name}b{number}", self._namespace(number)
        self._joined.append(number)
        _ip("netns", "add", namespace)
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", namespace)
        _ip("link", "set", near, "master", self._name, "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "link", "set", far, "address", hardware, "up")
        _ip("-n", namespace, "addr", "add", f"{address}/{_PREFIX}", "dev", far)
        # Known for good: else the kernel asks who has the address, and says within 3 s that nobody
        # answers, which a switch that drops does not.
        _ip("neigh", "replace", address, "lladdr", hardware, "dev", self._name, "nud", "permanent")
        return address

    def around(self, number: int) -> list[str]:
        """What goes before a command that is to run there."""
        return ["ip", "netns", "exec", self._namespace(number)]

    def cut(self, number: int) -> None:
        """Drop everything from and to there."""
        _ip("-n", self._namespace(number), "link", "set", f"{self._name}b{number}", "down")

    def mend(self, number: int) -> None:
        """Connections that are left go on as soon as the kernel sends again."""
        _ip("-n", self._namespace(number), "link", "set", f"{self._name}b{number}", "up")

    def close(self) -> None:
        """What runs there has ended."""
        for command in (
            *(["link", "del", f"{self._name}a{number}"] for number in self._joined),
            *(["netns", "del", self._namespace(number)] for number in self._joined),
            ["link", "del", self._name],
        ):
            subprocess.run(["ip", *command], capture_output=True, check=False)  # what there is of it

    def _namespace(self, number: int) -> str:
        return f"{self._name}n{number}"


def why_no_network() -> str:
    """Why there can be none here; "": there can, as far as that is seen without trying."""
    if os.geteuid():
        return "only root makes network namespaces"
    return "" if shutil.which("ip") else "network namespaces take iproute2"


def _free_network() -> ipaddress.IPv4Network:
    """That no route of this machine's leads to, but for the default one."""
    routes = subprocess.run(["ip", "-4", "-o", "route"], capture_output=True, text=True, check=True).stdout
    words = [line.split()[0] for line in routes.splitlines()]
    taken = [ipaddress.IPv4Network(word, strict=False) for word in words if word[0].isdigit()]
    for network in _ADDRESSES.subnets(new_prefix=_PREFIX):
        if not any(map(network.overlaps, taken)):
            return network
    raise EnvironmentProblem(f"all of {_ADDRESSES} is in use")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentProblem(f"no network namespace here: ip {' '.join(words)}: {done.stderr.strip()}")
