"""The architecture, as imports: each layer imports only what is below it, and zcache never imports
nbdkit."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

#: From the bottom up. A module may import from its own row and from rows above it in this list,
#: never from below it.
LAYERS = [
    ["zcache.linux.kernel_page", "zcache.linux.sockets"],
    [
        "zcache.tiers.backoff",
        "zcache.errors",
        "zcache.linux.libc",
        "zcache.linux.meminfo",
        "zcache.linux.standard_streams",
        "zcache.steps",
    ],
    [
        "zcache.pages.entry",
        "zcache.linux.group_limits",
        "zcache.image.image",
        "zcache.budget.pressure",
        "zcache.image.whole_words",
    ],
    ["zcache.sizes", "zcache.beneath"],
    ["zcache.image.flat_array", "zcache.clean.disk_file"],
    [
        "zcache.pages.codec",
        "zcache.seals",
        "zcache.pages.page_table",
        "zcache.pageframes",
        "zcache.tiers",
        "zcache.hardening",
    ],
    ["zcache.inherited"],
    ["zcache.store.ghost"],
    ["zcache.tiers.health", "zcache.statistics"],
    [
        "zcache.allocators",
        "zcache.pages.tmem",
        "zcache.store.admission",
        "zcache.pages.zpages",
        "zcache.fetch.readahead",
    ],
    ["zcache.fetch.fetch", "zcache.store.partial_write"],
    ["zcache.reclaim.compaction", "zcache.reclaim.recompression", "zcache.reclaim.spare_time"],
    ["zcache.reclaim.reclaimer"],
    ["zcache.budget.budget"],
    ["zcache.store.put", "zcache.store.get"],
    ["zcache.store.store"],
    ["zcache.control.snapshot", "zcache.clean.clean_disk", "zcache.budget.breathing", "zcache.control.peaks"],
    ["zcache.control.check", "zcache.control.status", "zcache.server.rebuild", "zcache.control.settings"],
    ["zcache.control.listener", "zcache.control.ask", "zcache.server.warm_up", "zcache.server.upkeep"],
    ["zcache.client.command", "zcache.swap", "zcache.testvm", "zcache.bench", "nbd_plugin"],
]


def layer_of(module: str) -> int | None:
    for level, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return level
    return None


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def modules() -> dict[str, Path]:
    paths = [*REPOSITORY.glob("zcache/**/*.py"), *REPOSITORY.glob("nbd_plugin/**/*.py")]
    names = {}
    for path in paths:
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def test_every_module_has_a_layer() -> None:
    assert [name for name in modules() if name != "zcache" and layer_of(name) is None] == []


def test_imports_point_down() -> None:
    wrong = []
    for name, path in modules().items():
        for imported in imports_of(path):
            own, other = layer_of(name), layer_of(imported)
            if own is not None and other is not None and other > own:
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_zcache_never_imports_nbdkit_or_the_plugin() -> None:
    for name, path in modules().items():
        if name.startswith("zcache"):
            heads = {imported.split(".")[0] for imported in imports_of(path)}
            assert not heads & {"nbdkit", "nbd_plugin"}, name


@pytest.mark.parametrize("program", ["zcache.keeper.keeper", "nbd_plugin.server"])
def test_what_is_locked_in_memory_loads_no_inspect(program: str) -> None:
    """1 MiB in each of server, standby and keeper, with what it loads; `dataclasses` would.
    (NamedTuple does not.)"""
    code = f"import sys, {program}; print('inspect' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert loaded.stdout == "False\n"
