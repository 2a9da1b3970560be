"""scripts/setup, on machines that it is not on."""

import os
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


@pytest.mark.parametrize("limit", ["-d 3000", "-v 6000"])
def test_a_limit_on_memory_hides_no_package(limit: str) -> None:
    command = f"ulimit -S {limit}; exec scripts/setup"
    done = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "Debian packages" not in done.stderr, done.stderr
