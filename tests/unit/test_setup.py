"""scripts/setup, on machines that it is not on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def setup(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """On arm64: with a `uname` that says so."""
    uname = folder / "uname"
    uname.write_text("#!/bin/sh\necho aarch64\n")
    uname.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [str(REPOSITORY / "scripts/setup"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_server_is_set_up_on_arm64_and_the_x86_64_vm_is_not(tmp_path: Path) -> None:
    assert setup(tmp_path, "server").returncode == 0
    refused = setup(tmp_path)
    assert refused.returncode == 1
    assert "made for x86_64, this is aarch64; for all but tests and VM: scripts/setup server" in refused.stderr


def test_without_a_compiler_or_a_network_what_is_installed_serves(tmp_path: Path) -> None:
    """With a compiler that does not work; then with the word that there is no object lost, and no
    network to make one."""
    for folder in ("zcache", "nbd_plugin", "scripts"):
        without = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=without)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)

    def run(**environment: str) -> str:
        command = [str(tmp_path / "scripts/setup"), "server"]
        environment = {**os.environ, **environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    in_python = "it is in Python, which takes more CPU\n"
    assert run(CC="false").endswith(f"setup: the page loop could not be compiled: {in_python}")
    assert run(CC="false") == ""
    (tmp_path / ".venv/.zcache-not-compiled").unlink()
    no_network = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    assert run(**no_network).endswith(f"setup: the page loop was not compiled again: {in_python}")
    assert run(**no_network) == ""


@pytest.mark.parametrize("limit", ["-d 3000", "-v 6000"])
def test_a_limit_on_memory_hides_no_package(limit: str) -> None:
    command = f"ulimit -S {limit}; exec scripts/setup"
    done = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "Debian packages" not in done.stderr, done.stderr
