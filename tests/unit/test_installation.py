"""What `pip install .` gives, in an environment that has what the package says it needs, and no
more.

No network: the wheel is built by this environment's setuptools, and what it needs is linked from
here.
"""

import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

import zcache

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands that were installed."""
    folder = tmp_path_factory.mktemp("installation")
    sources = folder / "sources"
    # A copy, for building leaves files beside the sources.
    for package in ("zcache", "nbd_plugin"):
        shutil.copytree(REPOSITORY / package, sources / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, sources)
    (sources / "scripts").mkdir()
    shutil.copy(REPOSITORY / "scripts/zcache", sources / "scripts")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", sources], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", environment, "install", "--no-index", "--no-deps", wheel], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (found,) = metadata.distributions(name="zcache", path=[str(packages)])
    link_needed(found, packages)
    return environment / "bin"


def link_needed(distribution: metadata.Distribution, packages: Path) -> None:
    """What it says it needs, what that needs, and so on; not what is only for an extra."""
    for requirement in distribution.requires or []:
        name, marker = re.match(r"[\w.-]+", requirement), requirement.partition(";")[2]
        if name is None or marker:  # an extra's, or another system's
            continue
        needed = metadata.distribution(name[0])
        tops = {file.parts[0] for file in needed.files or [] if file.parts[0] != ".."}
        for top in tops:
            target = packages / top
            if not target.is_symlink() and not target.exists():
                target.symlink_to(Path(str(needed.locate_file(top))))
        link_needed(needed, packages)


def test_the_version(installed: Path) -> None:
    """One, of what is installed and of what lies here."""
    said = subprocess.run([installed / "zcache", "--version"], capture_output=True, text=True, check=True, cwd="/")
    assert said.stdout == f"zcache {zcache.__version__}\n"
    in_place = [sys.executable, "-m", "zcache.client.command", "--version"]
    said = subprocess.run(in_place, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert said.stdout == f"zcache {zcache.__version__}\n"
    (found,) = metadata.distributions(name="zcache", path=list(map(str, installed.parent.glob("lib/*/site-packages"))))
    assert found.version == zcache.__version__


def test_with_no_swap_status_is_one_line(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "zcache"), "status", "--control", str(tmp_path / "control")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(
        f"zcache: no server answers at {tmp_path}/control: No such file or directory; swap-up"
    )


def test_whoever_calls_it_has_a_python_of_his_own(installed: Path) -> None:
    """Conda's shell, in which no other Python starts; by a link, from anywhere, with no PATH to
    speak of."""
    link = installed.parent / "link"
    link.symlink_to(installed / "zcache")
    environment = {"PYTHONHOME": "/opt/conda", "PYTHONPATH": "/opt/conda", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([link, "--version"], capture_output=True, text=True, check=False, cwd="/", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"zcache {zcache.__version__}\n", "")


@pytest.mark.parametrize(
    "module",
    ["zcache.swap.up", "zcache.swap.nbd_netlink", "zcache.swap.down", "zcache.server.server", "nbd_plugin.front_end"],
)
def test_it_is_whole(installed: Path, module: str) -> None:
    """Whatever a command imports is there. (libnbd's Python module is the system's.)"""
    subprocess.run([installed / "python", "-P", "-c", f"import {module}"], check=True, cwd="/")


@pytest.mark.parametrize(
    "module", ["zcache.server.server", "nbd_plugin.front_end", "zcache.keeper.keeper", "zcache.swap.down"]
)
def test_what_is_locked_in_memory_loads_none_of_the_commands_packages(module: str) -> None:
    ask = f"import sys, {module}; print([name for name in ('rich', 'pyroute2', 'argparse') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "[]\n"
