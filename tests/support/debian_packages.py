"""What is in Debian packages, without installing them: programs that a test wants to meet, but not
this machine."""

import subprocess
from collections.abc import Sequence
from pathlib import Path


def unpack(names: Sequence[str], folder: Path) -> str | None:
    """Fetch them, of this machine's Debian, and unpack them under the folder; None, or why it could
    not."""
    archives = folder / "archives"
    archives.mkdir()
    problem = _problem_of(["apt-get", "-q", "download", *names], archives)
    for archive in archives.iterdir():
        problem = problem or _problem_of(["dpkg-deb", "-x", str(archive), str(folder)], archives)
    return problem


def _problem_of(command: Sequence[str], folder: Path) -> str | None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 0:
        return None
    return f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}"
