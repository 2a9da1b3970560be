"""What `pip install .` gives, in an environment that has what the package says it needs, and no
more.

No network: the wheel is built by this environment's setuptools, and what it needs is linked from
here.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

import zcache
from tests.support.page_loops import page_loops
from tests.unit.swap.test_systemd_unit import UNKNOWN
from zcache.keeper.state import StateFolder

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands that were installed."""
    return install(tmp_path_factory.mktemp("installation"))


def install(folder: Path, **environment_of_pip: str) -> Path:
    """The folder of the commands."""
    sources = folder / "sources"
    # A copy, for building leaves files beside the sources.
    for package in ("zcache", "nbd_plugin"):
        shutil.copytree(REPOSITORY / package, sources / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, sources)
    (sources / "scripts").mkdir()
    shutil.copy(REPOSITORY / "scripts/zcache", sources / "scripts")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", sources],
        check=True,
        cwd=folder,
        env=os.environ | environment_of_pip,
    )
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


def test_with_a_swap_on_and_no_server_it_says_what_is_under_way(installed: Path, tmp_path: Path) -> None:
    StateFolder(tmp_path).state.touch()
    command = [str(installed / "zcache"), "check", "--control", str(tmp_path / "control")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "a swap is on: if its server has ended, the keeper starts another" in done.stderr


def test_whoever_calls_it_has_a_python_of_his_own(installed: Path) -> None:
    """Conda's shell, in which no other Python starts; by a link, from anywhere, with no PATH to
    speak of."""
    link = installed.parent / "link"
    link.symlink_to(installed / "zcache")
    environment = {"PYTHONHOME": "/opt/conda", "PYTHONPATH": "/opt/conda", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([link, "--version"], capture_output=True, text=True, check=False, cwd="/", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"zcache {zcache.__version__}\n", "")


def run(installed: Path, *words: object, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    """`zcache` with these words, and nothing of this environment but its `PATH`."""
    command = [str(word) for word in (installed / "zcache", *words)]
    environment = {"PATH": path or os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment, timeout=60)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--help"], "usage: swap-up "),
        (["down", "--help"], "usage: swap-down "),
        (["upgrade", "--help"], "usage: swap-upgrade "),
        (["serve", "--version"], "nbdkit 1."),
        (["pager", "--help"], "usage: zcache pager "),
        (["run", "--help"], "usage: zcache run "),
        (["sleep", "--help"], "usage: zcache sleep "),
        (["set", "--help"], "usage: zcache set "),
        (["check", "--help"], "usage: zcache check "),
        (["remote", "--help"], "usage: zcache remote "),
        (["remote", "acl", "alice"], "ACL SETUSER alice "),
        (["systemd-unit", "--needrestart"], "# For /etc/needrestart/"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_each_command_starts(installed: Path, words: list[str], said: str) -> None:
    done = run(installed, *words)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(said)
    assert f" {words[0]} " in run(installed, "--help").stdout


def test_what_is_installed_runs_jobs(installed: Path) -> None:
    """By files that are no modules of the package, too."""
    job = "import sys; print('sitecustomize' in sys.modules and 'zcache.run.in_job' in sys.modules)"
    done = run(installed, "run", "--limit", "8M", "--", installed / "python", "-c", job)
    if "userfaultfd" in done.stderr:
        pytest.skip(f"NOT run: {done.stderr}")
    assert (done.returncode, done.stdout) == (0, "True\n"), done


def test_what_is_installed_serves(installed: Path) -> None:
    done = run(
        installed, "serve", "-U", "-", "--run", 'nbdinfo --size "$uri"', "size=64M", "budget=16M", "overcommit=yes"
    )
    assert (done.returncode, done.stdout) == (0, f"{64 << 20}\n"), done.stderr


def page_loop_of(installed: Path) -> str:
    """What a server says of it."""
    done = run(installed, "serve", "-U", "-", "--run", "true", "size=64M", "budget=16M", "overcommit=yes")
    (line,) = (line for line in done.stderr.splitlines() if "page loop: " in line)
    return line.partition("page loop: ")[2]


def test_the_page_loop_is_compiled_where_there_is_a_compiler(installed: Path) -> None:
    in_python = "in Python, which takes more CPU (the compiled one was not built)"
    assert page_loop_of(installed) == {"python": in_python, "compiled": "compiled"}[page_loops()[-1].name]


def test_a_compiler_that_does_not_work_is_no_failed_installation(tmp_path: Path) -> None:
    said = page_loop_of(install(tmp_path, CC="false"))
    assert said == "in Python, which takes more CPU (the compiled one was not built)"


def test_without_nbdkit_it_says_so(installed: Path, tmp_path: Path) -> None:
    for name in ("sh", "dirname", "readlink"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    done = run(installed, "up", "--state-folder", tmp_path / "state", path=str(tmp_path))
    remedy = "apt-get install nbdkit nbdkit-plugin-python\n"
    assert (done.returncode, done.stderr) == (1, f"swap-up: error: nbdkit is missing: {remedy}")
    done = run(installed, "serve", "-U", tmp_path / "socket", "size=64M", path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"serve: cannot run nbdkit: No such file or directory; {remedy}"
    assert not (tmp_path / "state").exists()


def test_without_libnbd_it_says_so(installed: Path, tmp_path: Path) -> None:
    """Which no package of PyPI brings, and this environment does not see."""
    done = run(installed, "up", "--state-folder", tmp_path / "state")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("swap-up: error: libnbd's Python module is missing: apt-get install python3-libnbd")
    assert not (tmp_path / "state").exists()


def test_without_redis_py_it_says_so(installed: Path) -> None:
    """Which is an extra, and is for `zcache remote` alone."""
    done = run(installed, "remote", "status", "--remote", "redis://127.0.0.1:1")
    said = r"zcache: redis-py is missing: (/\S+) -m pip install redis\n"
    told = re.fullmatch(said, done.stderr)
    assert (done.returncode, done.stdout) == (2, "") and told, done.stderr
    assert Path(told[1]).parent == installed


def test_the_systemd_unit_names_what_is_installed(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "systemd-unit")
    assert (done.returncode, done.stderr) == (0, "") and "@ROOT@" not in done.stdout
    settings = [line for line in done.stdout.splitlines() if line.startswith(("Exec", "Documentation"))]
    program = f'"{installed}/zcache"'
    assert settings == [
        f"ExecStart={program} up $ZCACHE",
        f"ExecReload={program} upgrade",
        f"ExecStop={program} down",
        f"ExecStopPost=/bin/sh -c 'test \"$$SERVICE_RESULT\" = exit-code || exec {program} down'",
    ]
    assert f"#   {installed}/zcache systemd-unit | sudo tee" in done.stdout
    if shutil.which("systemd-analyze"):
        (tmp_path / "zcache.service").write_text(done.stdout)
        command = ["systemd-analyze", "verify", str(tmp_path / "zcache.service")]
        verified = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (verified.returncode, UNKNOWN.sub("", verified.stderr)) == (0, "")


@pytest.mark.parametrize(
    "module",
    ["zcache.swap.up", "zcache.swap.nbd_netlink", "zcache.swap.down", "zcache.server.server", "nbd_plugin.front_end"],
)
def test_it_is_whole(installed: Path, module: str) -> None:
    """Whatever a command imports is there. (libnbd's Python module is the system's.)"""
    subprocess.run([installed / "python", "-P", "-c", f"import {module}"], check=True, cwd="/")


def test_zcache_becomes_swap_down_before_it_loads_more(installed: Path) -> None:
    """For swap-down runs when memory is short."""
    ask = "import os, sys; os.execv = lambda *_: sys.exit(' '.join(sys.modules)); sys.argv = ['zcache', 'down'];"
    ask += "import runpy; runpy.run_module('zcache.client', run_name='__main__')"
    done = subprocess.run([installed / "python", "-I", "-c", ask], capture_output=True, text=True, check=False, cwd="/")
    assert "zcache.client.programs" in done.stderr.split()
    assert not {"rich", "argparse", "subprocess", "pyroute2", "zcache.client.command"} & set(done.stderr.split())


@pytest.mark.parametrize(
    "module",
    [
        "zcache.server.server",
        "zcache.remote.remote",
        "nbd_plugin.front_end",
        "zcache.keeper.__main__",
        "zcache.swap.down",
    ],
)
def test_what_is_locked_in_memory_loads_none_of_the_commands_packages(module: str) -> None:
    ask = f"import sys, {module}; print([x for x in ('rich', 'pyroute2', 'argparse', 'redis') if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "[]\n"
