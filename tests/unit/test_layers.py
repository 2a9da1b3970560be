"""The architecture, as imports: each layer imports only what is below it, and zcache never imports
nbdkit."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = REPOSITORY / "ARCHITECTURE.md"


def layers() -> dict[str, set[str]]:
    """What each folder of the product, or file of zcache/ itself, may import, from the bottom up:
    the table in ARCHITECTURE.md."""
    text = TABLE.read_text().partition("## Layers")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    return {name: set(imported.split()) for name, imported in rows}


def layer_of(module: str) -> str:
    """A row's name; "" for what has none."""
    head, _, rest = module.partition(".")
    return rest.partition(".")[0] if head == "zcache" else head if head == "nbd_plugin" else ""


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


def test_the_table_is_what_the_imports_are() -> None:
    found: dict[str, set[str]] = {layer_of(name): set() for name in modules() if layer_of(name)}
    for name, path in modules().items():
        if name == "zcache":  # which names what people import from it, and loads nothing by itself
            continue
        for imported in map(layer_of, imports_of(path)):
            if imported in found and imported != layer_of(name):
                found[layer_of(name)].add(imported)
    assert found == layers()


def test_imports_point_down() -> None:
    above: set[str] = set()
    for layer, imported in reversed(layers().items()):
        above.add(layer)
        assert not imported & above, layer


def test_zcache_never_imports_nbdkit_or_the_plugin() -> None:
    for name, path in modules().items():
        if name.startswith("zcache"):
            heads = {imported.split(".")[0] for imported in imports_of(path)}
            assert not heads & {"nbdkit", "nbd_plugin"}, name


@pytest.mark.parametrize("program", ["zcache.keeper.__main__", "zcache.server.server", "nbd_plugin.front_end"])
def test_what_is_locked_in_memory_loads_no_inspect(program: str) -> None:
    """1 MiB in each of server, standby and keeper, with what it loads; `dataclasses` would.
    (NamedTuple does not.)"""
    code = f"import sys, {program}; print('inspect' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert loaded.stdout == "False\n"
