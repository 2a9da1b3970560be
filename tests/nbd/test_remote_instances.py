"""Four servers at one Cluster, each with an account and a quota of its own.

None sees another's frames, each keeps to its quota, one that is paused goes on, and what one that
is killed for good has left is listed, and removed by a person's word.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.nbd.conftest import RunningServer
from tests.support.engines import Engine, Refused, cluster, wait_until
from zcache.client.remote import acl_rule
from zcache.remote.accounts import quota_key
from zcache.remote.copies import OVERHEAD_BYTES
from zcache.remote.tables import TAIL_BYTES

REPOSITORY: Final = Path(__file__).resolve().parents[2]
OWNERS: Final = ("alice", "bob", "carol", "dave")
#: Bytes; what each would fill without one is 2 x 12 MiB.
QUOTAS: Final = dict(zip(OWNERS, (3 << 20, 6 << 20, 12 << 20, 48 << 20), strict=True))
PAGES: Final = 3072
RUN_PAGES: Final = 32
#: What an engine pays for a frame.
PAID_BYTES: Final = (64 << 10) - TAIL_BYTES + OVERHEAD_BYTES


class Instance:
    """A server of one owner's."""

    def __init__(self, folder: Path, owner: str, node: Engine, rng: random.Random) -> None:
        self.owner, self._rng = owner, rng
        folder.mkdir()
        file = folder / "password"
        file.touch(0o600)
        file.write_text(f"word-of-{owner}")
        self.url = node.url(owner, cluster="yes", password_file=file)
        where = (f"backing={folder}/b", f"remote={self.url}")  # the disk has what goes beyond a quota
        words = ("size=32M", "budget=2M", *where, "remote_budget=16M", "overcommit=yes")
        self.server = RunningServer(folder, words)
        self.client = self.server.connect()
        self.pages: dict[int, bytes] = {}

    def write(self) -> None:
        for first in self._rng.sample(range(0, PAGES, RUN_PAGES), PAGES // RUN_PAGES):
            for number in range(first, first + RUN_PAGES):
                self.pages[number] = self._rng.randbytes(3000).ljust(4096, b"\0")
            run = b"".join(self.pages[number] for number in range(first, first + RUN_PAGES))
            self.client.pwrite(run, first * 4096)

    def read(self) -> None:
        for number, page in self.pages.items():
            assert self.client.pread(4096, number * 4096) == page, f"page {number} of {self.owner}"

    @property
    def name(self) -> str:
        name: str = self.server.status()["remote_name"]
        return name


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Engine]]:
    users = [acl_rule(owner).removeprefix("ACL SETUSER ").replace("PASSWORD", f"word-of-{owner}") for owner in OWNERS]
    with cluster(tmp_path, 3, users=users, maxmemory=256 << 20) as nodes:
        for owner, quota_bytes in QUOTAS.items():
            set_at(nodes, quota_key(owner), quota_bytes)
        yield nodes


@pytest.fixture
def four(tmp_path: Path, nodes: list[Engine], rng: random.Random) -> Iterator[list[Instance]]:
    instances: list[Instance] = []
    try:
        for number, owner in enumerate(OWNERS):
            instances.append(Instance(tmp_path / owner, owner, nodes[number % 3], rng))
        yield instances
    finally:
        for instance in instances:
            instance.server.process.kill()
            instance.server.process.wait()


def set_at(nodes: list[Engine], key: bytes, value: int) -> None:
    """At the node that has the key."""
    for node in nodes:
        try:
            node.call("SET", key, value)
        except Refused as refused:
            assert str(refused).startswith("MOVED")
        else:
            return
    raise AssertionError("no node has it")


def frames_of(nodes: list[Engine], owner: str) -> list[bytes]:
    """The keys of frames at all of the nodes."""
    found: list[bytes] = []
    for node in nodes:
        keys = node.call("KEYS", f"zcache:{owner}:*")
        assert isinstance(keys, list)
        found += [key for key in keys if key[-1:].isdigit()]
    return found


def asked(*words: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    """`zcache remote`."""
    command = [str(REPOSITORY / "scripts/zcache"), "remote", *words]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60, check=False)


def rows_of(url: str) -> dict[str, list[dict[str, Any]]]:
    """What `zcache remote status` says of each name."""
    done = asked("status", "--json", "--remote", url)
    assert done.returncode == 0, done.stderr
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(done.stdout)["instances"]:
        rows.setdefault(row["name"], []).append(row)
    return rows


@pytest.mark.parametrize(
    "paused_seconds", [pytest.param(10, id="10-s"), pytest.param(600, id="10-min", marks=pytest.mark.thorough)]
)
@pytest.mark.timeout(1500)
def test_four_instances_at_one_cluster(nodes: list[Engine], four: list[Instance], paused_seconds: float) -> None:
    for instance in four:
        instance.write()
    for instance in four:
        instance.server.check()
        instance.read()
    assert_quotas_hold(nodes, four)
    alice, bob, carol, dave = four
    assert {key.split(b":")[2].decode() for key in frames_of(nodes, "bob")} == {bob.name}
    assert_none_sees_another_s(nodes, four)

    # One is paused, one is killed for good, and the other two go on.
    names = {instance.owner: instance.name for instance in four}
    os.kill(carol.server.process.pid, signal.SIGSTOP)
    bob.server.process.kill()
    bob.server.process.wait()
    ends = time.monotonic() + paused_seconds
    while time.monotonic() < ends:
        for instance in (alice, dave):
            instance.write()
            instance.read()
        time.sleep(min(max(ends - time.monotonic(), 0), 1))
    os.kill(carol.server.process.pid, signal.SIGCONT)
    carol.read()
    carol.write()
    carol.read()
    wait_until(lambda: not carol.server.status()["reasons"], "all is well with the one that was paused")
    assert carol.name == names["carol"]
    for instance in (alice, carol, dave):
        instance.write()  # what was at engines comes back into RAM once there has been room for a while
        instance.server.check()
    assert_quotas_hold(nodes, [alice, carol, dave])

    # The dead one's are there for as long as nobody says otherwise; then they are gone, and no
    # others.
    operator = nodes[0].url("tests", "", cluster="yes")
    rows = rows_of(operator)
    assert set(rows) == set(names.values())
    (owner,) = {row["owner"] for row in rows[names["bob"]]}
    assert owner == "bob" and sum(row["frames"] for row in rows[names["bob"]]) == len(frames_of(nodes, "bob")) > 0
    alive = asked("gc", names["dave"], "--yes", "--remote", operator)
    assert alive.returncode == 2 and "so it is alive" in alive.stderr, alive.stderr
    others = [len(frames_of(nodes, owner)) for owner in ("alice", "carol", "dave")]
    force = [] if paused_seconds > 60 else ["--force"]  # it was seen within the last minute
    gone = asked("gc", names["bob"], "--yes", *force, "--remote", operator)
    assert gone.returncode == 0, gone.stderr
    assert frames_of(nodes, "bob") == [] and names["bob"] not in rows_of(operator)
    assert [len(frames_of(nodes, owner)) for owner in ("alice", "carol", "dave")] == others
    for instance in (alice, carol, dave):
        instance.read()
        instance.client.shutdown()
        assert instance.server.stop() == 0
        assert frames_of(nodes, instance.owner) == [], "nothing stays of one that was stopped"


@pytest.mark.thorough
def test_an_account_may_not_touch_what_is_another_s(nodes: list[Engine], four: list[Instance]) -> None:
    """And what it does with its own, it does nowhere else."""
    for instance in four[:2]:
        instance.write()
        instance.read()
    assert_none_sees_another_s(nodes, four)


@pytest.mark.thorough
def test_a_quota_that_is_made_smaller_is_kept_to(nodes: list[Engine], four: list[Instance]) -> None:
    """What is over goes on to the disk."""
    dave = four[3]
    dave.write()
    wait_until(lambda: len(frames_of(nodes, "dave")) * PAID_BYTES > 8 << 20, "frames are there")
    set_at(nodes, quota_key("dave"), 4 << 20)
    wait_until(lambda: len(frames_of(nodes, "dave")) * PAID_BYTES <= 4 << 20, "it keeps to its quota")
    dave.read()
    dave.server.check()
    assert not dave.server.status()["lost_pages"]


def assert_quotas_hold(nodes: list[Engine], instances: list[Instance]) -> None:
    for instance in instances:
        wait_until(
            lambda instance=instance: (  # type: ignore[misc]
                len(frames_of(nodes, instance.owner)) * PAID_BYTES <= QUOTAS[instance.owner]
            ),
            f"{instance.owner} keeps to its quota",
        )
        for _ in range(5):  # all may have been written again since, and gone to the disk
            if frames_of(nodes, instance.owner):
                break
            instance.write()
        assert frames_of(nodes, instance.owner), f"{instance.owner} uses it"
        assert instance.server.status()["remote_bytes"] <= QUOTAS[instance.owner]


def assert_none_sees_another_s(nodes: list[Engine], instances: list[Instance]) -> None:
    """As the engines tell each account."""
    for instance in instances:
        for key in frames_of(nodes, "alice"):
            if instance.owner != "alice":
                for node in nodes:
                    said = node.call("ACL", "DRYRUN", instance.owner, "GET", key)
                    assert isinstance(said, bytes) and said != b"OK"
        for node in nodes:
            said = node.call("ACL", "DRYRUN", instance.owner, "SET", quota_key(instance.owner), "1")
            assert said != b"OK", "it may not set its own quota"
