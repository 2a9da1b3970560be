"""Limits of control groups, of both versions, in trees of ordinary files: which group it is, and
what it leaves."""

from pathlib import Path

import pytest

from zcache.errors import BadInput
from zcache.hardening import limits
from zcache.linux import group_limits, meminfo
from zcache.linux.group_limits import GroupLimits, Room, least_tasks
from zcache.server.config import parse_config, refusal
from zcache.sizes import parse_budget

MIB = 1 << 20
DESCRIPTORS = Path("/proc/self/fd")
NO_LIMIT_1 = 0x7FFFFFFFFFFFF000


class Tree:
    """What /proc and the groups' files say."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.own, self.mounts = folder / "own", folder / "mountinfo"
        self.own.write_text("")
        self.mounts.write_text("22 1 0:20 / /proc rw shared:1 - proc proc rw\n")

    def mount(self, kind: str, point: str, options: str, root: str = "/") -> None:
        with self.mounts.open("a") as file:
            place = str(self.root / point).replace(" ", "\\040")
            file.write(f"30 22 0:30 {root} {place} rw,nosuid shared:9 - {kind} {kind} {options}\n")

    def group(self, path: str, **files: object) -> None:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name.replace("__", ".")).write_text(f"{value}\n")

    def version_2(self, path: str, limit: object, used: int, *, high: object = "max", cache: int = 0) -> None:
        stat = f"anon 1\nfile {cache}\ninactive_file {cache // 2}\nactive_file {cache - cache // 2}\nunevictable 7"
        self.group(path, memory__max=limit, memory__high=high, memory__current=used, memory__stat=stat)

    def version_1(
        self, path: str, limit: int, used: int, *, with_swap: int = NO_LIMIT_1, with_swap_used: int = 0, cache: int = 0
    ) -> None:
        stat = f"inactive_file 5\nactive_file 5\ntotal_inactive_file {cache}\ntotal_active_file 0"
        self.group(
            path,
            memory__limit_in_bytes=limit,
            memory__usage_in_bytes=used,
            memory__memsw__limit_in_bytes=with_swap,
            memory__memsw__usage_in_bytes=with_swap_used,
            memory__stat=stat,
        )

    def rooms(self) -> dict[str, tuple[int, int]]:
        """By the file's path below the root: limit and room, in MiB."""
        groups = GroupLimits(self.own, self.mounts)
        found = groups.rooms()
        groups.close()
        return {
            str(Path(room.name).relative_to(self.root)): (room.limit // MIB, room.available // MIB) for room in found
        }


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_version_2_every_group_up_to_the_root_counts(tree: Tree) -> None:
    tree.mount("cgroup2", ".", "rw,nsdelegate")
    tree.own.write_text("0::/system.slice/zcache.service\n")
    tree.group(".", memory__stat="anon 0")  # the root has no limit, and no file for one
    tree.version_2("system.slice", 300 * MIB, 290 * MIB, cache=40 * MIB)
    tree.version_2("system.slice/zcache.service", 200 * MIB, 20 * MIB, high=150 * MIB)
    assert tree.rooms() == {
        "system.slice/memory.max": (300, 50),
        "system.slice/zcache.service/memory.max": (200, 180),
        "system.slice/zcache.service/memory.high": (150, 130),
    }


def test_version_1_with_the_limit_on_memory_and_swap(tree: Tree) -> None:
    tree.mount("cgroup", "memory", "rw,memory")
    tree.mount("cgroup", "cpu", "rw,cpu,cpuacct")
    tree.own.write_text("5:cpu,cpuacct:/x\n4:memory:/box/inner\n0::/elsewhere\n")
    tree.version_1("memory", NO_LIMIT_1, 9000 * MIB)
    tree.version_1("memory/box", 512 * MIB, 500 * MIB, with_swap=600 * MIB, with_swap_used=599 * MIB, cache=100 * MIB)
    tree.version_1("memory/box/inner", NO_LIMIT_1, 3 * MIB)
    assert tree.rooms() == {
        "memory/box/memory.limit_in_bytes": (512, 112),
        "memory/box/memory.memsw.limit_in_bytes": (600, 101),
    }


def test_a_kernel_that_does_not_count_swap(tree: Tree) -> None:
    tree.mount("cgroup", "memory", "rw,memory")
    tree.own.write_text("4:memory:/box\n")
    tree.group("memory/box", memory__limit_in_bytes=64 * MIB, memory__usage_in_bytes=MIB, memory__stat="cache 0")
    assert tree.rooms() == {"memory/box/memory.limit_in_bytes": (64, 63)}


@pytest.mark.parametrize(
    ("own", "root"),
    [
        ("0::/", "/"),  # a namespace of its own
        ("0::/docker/1f2e", "/docker/1f2e"),  # the host's names, and only this group mounted
        ("0::/../../outside", "/"),  # moved out of its namespace
        ("0::/docker/other (deleted)", "/docker/1f2e"),
    ],
)
def test_a_container_whose_own_group_is_all_that_is_mounted(tree: Tree, own: str, root: str) -> None:
    tree.mount("cgroup2", "with blank", "rw", root)
    tree.own.write_text(f"{own}\n")
    tree.version_2("with blank", 100 * MIB, 130 * MIB)
    assert tree.rooms() == {"with blank/memory.max": (100, 0)}


def test_a_mount_point_may_be_of_any_bytes(tree: Tree) -> None:
    """Somebody mounts there while the swap is on: the next server is not to fail for it."""
    tree.mounts.write_bytes(b"29 22 8:1 / /mnt/caf\xe9 rw - ext4 /dev/sda1 rw\n")
    tree.mount("cgroup2", ".", "rw")
    tree.own.write_bytes(b"0::/box\n")
    tree.version_2("box", 100 * MIB, 30 * MIB)
    assert tree.rooms() == {"box/memory.max": (100, 70)}


def test_another_groups_folder_that_is_mounted_somewhere_is_not_ours(tree: Tree) -> None:
    tree.mount("cgroup2", "other", "rw", "/other")
    tree.mount("cgroup2", "all", "rw")
    tree.own.write_text("0::/box\n")
    tree.version_2("other", 10 * MIB, 1 * MIB)
    tree.version_2("all/box", 100 * MIB, 30 * MIB)
    assert tree.rooms() == {"all/box/memory.max": (100, 70)}


def test_both_versions_at_once(tree: Tree) -> None:
    """Version 2 without a memory controller, as systemd has it beside version 1."""
    tree.mount("cgroup2", "unified", "rw")
    tree.mount("cgroup", "memory", "rw,memory")
    tree.own.write_text("4:memory:/box\n0::/box\n")
    tree.group("unified/box", cgroup__procs="1")
    tree.version_1("memory/box", 64 * MIB, MIB)
    assert list(tree.rooms()) == ["memory/box/memory.limit_in_bytes"]


def test_nothing_is_asked_of_files_that_are_not_there(tmp_path: Path) -> None:
    assert GroupLimits(tmp_path / "own", tmp_path / "mountinfo").rooms() == ()
    assert least_tasks(tmp_path / "own", tmp_path / "mountinfo") is None


def test_limits_are_read_anew_through_the_files_that_are_open(tree: Tree) -> None:
    """As by a server that has given the file system up; and a group that is gone has no limits."""
    tree.mount("cgroup2", ".", "rw")
    tree.own.write_text("0::/box\n")
    tree.version_2("box", "max", 20 * MIB)
    before = set(DESCRIPTORS.iterdir())
    groups = GroupLimits(tree.own, tree.mounts)
    assert groups.rooms() == ()
    tree.version_2("box", 64 * MIB, 20 * MIB)
    tree.own.unlink()
    assert [(room.limit, room.available) for room in groups.rooms()] == [(64 * MIB, 44 * MIB)]
    (tree.root / "box/memory.max").write_text("")  # ENODEV, as far as files can be one
    assert groups.rooms() == ()
    groups.close()
    assert set(DESCRIPTORS.iterdir()) == before


def test_tasks_of_the_group_that_leaves_the_fewest(tree: Tree) -> None:
    tree.mount("cgroup2", ".", "rw")
    tree.own.write_text("0::/box/inner\n")
    tree.group("box", pids__max=30, pids__current=26)
    tree.group("box/inner", pids__max=12, pids__current=3)
    assert least_tasks(tree.own, tree.mounts) == Room(30, 4, str(tree.root / "box/pids.max"))
    tree.group("box", pids__max="max")
    tree.group("box/inner", pids__max=2)  # set below what there are
    assert least_tasks(tree.own, tree.mounts) == Room(2, 0, str(tree.root / "box/inner/pids.max"))
    tree.group("box/inner", pids__max="max")
    assert least_tasks(tree.own, tree.mounts) is None


def test_a_share_is_of_the_least_limit() -> None:
    rooms = [Room(300 * MIB, 1, "a"), Room(200 * MIB, 150 * MIB, "b")]
    assert parse_budget("16M..25%", "", rooms) == (16 * MIB, 50 * MIB)
    assert parse_budget("50%", "", [Room(1 << 61, 1, "larger than the machine")])[0] <= meminfo.read_bytes("MemTotal")


def test_parameters_are_tried_for_a_server_that_gets_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_limits, "rooms", lambda: (Room(64 * MIB, 64 * MIB, "/session/memory.max"),))
    words = {"size": "64M", "budget": "50%"}
    with pytest.raises(BadInput, match="larger than budget=50%"):
        parse_config(words.items())
    assert refusal(f"{key}={value}" for key, value in words.items()) == ""
    assert "larger than budget=32M" in refusal(["size=64M", "budget=32M"])


def test_what_does_not_fit_is_said_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = [Room(300 * MIB, 280 * MIB, "/g/memory.max"), Room(200 * MIB, 100 * MIB + 1, "/g/a/memory.max")]
    monkeypatch.setattr(group_limits, "rooms", lambda: tuple(rooms))
    limits.check_groups({"budget": 80 * MIB, "server": 20 * MIB}, "or give less")
    with pytest.raises(BadInput) as refused:
        limits.check_groups({"budget": 80 * MIB, "server": 21 * MIB}, "or give less")
    said = "/g/a/memory.max is 200 MiB, and leaves 100 MiB: 101 MiB are needed"
    assert str(refused.value).startswith(said) and "80 MiB budget, 21 MiB server" in str(refused.value)
    monkeypatch.setattr(group_limits, "least_tasks", lambda: Room(6, 2, "/g/pids.max"))
    limits.check_tasks(2, "for it")
    with pytest.raises(BadInput, match=r"^/g/pids.max is 6, and leaves 2: 9 more .* raise it to 13 or more$"):
        limits.check_tasks(9, "for it")
    assert "/g/pids.max is 6, and leaves 2; raise it" in limits.in_words(BlockingIOError(11, "try again"))
    assert "/g/a/memory.max is 200 MiB" in limits.in_words(MemoryError())
