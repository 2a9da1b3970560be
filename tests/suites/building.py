"""Making the few programs that a suite has in source only, with Debian's compiler. What is made is
kept beside the sources."""

import re
import subprocess
from pathlib import Path
from typing import Final

from zcache.errors import EnvironmentProblem

_SECONDS: Final = 600


def make(folder: Path, product: Path, *commands: tuple[str, ...]) -> None:
    """Runs the commands, unless what they make is there."""
    for command in commands if not product.exists() else ():
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=_SECONDS
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            reason = (errors or done.stderr.strip().splitlines() or ["no message"])[0]
            raise EnvironmentProblem(f"{' '.join(command)} failed in {folder}: {reason}; run scripts/setup suites")


def configure(template: Path, made: Path, **values: str) -> None:
    """One file of a tree, as its configure would make it from a template. What is in capitals and
    not given is a program, by its own name; the rest becomes empty."""
    values = {"PYTHON": "python3", "SOEXT": "so", "EXEEXT": "", **values}

    def value(found: re.Match[str]) -> str:
        name = found[1]
        return values.get(name, name.lower().replace("_", "-") if name.isupper() else "")

    made.write_text(re.sub("@([A-Za-z_]+)@", value, template.read_text()))
