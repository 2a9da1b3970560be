"""The suites' sources: Debian's source packages, by apt, kept and unpacked in the user's cache
folder.

apt runs with a sources list and a state folder of its own, so the machine's stay as they are; what
it fetches is checked against Debian's archive keys as always. The release is this machine's, so
that tests and installed programs are of the same version; where the mirror no longer has that
source, the other release's is taken, and that is said.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zcache.errors import EnvironmentProblem
from zcache.testvm.debian_root import RELEASES, mirror, roots_folder

_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SECONDS: Final = 600


def unpacked(package: str, members: Sequence[str] = ()) -> Path:
    """The folder of a source package's upstream tree, fetched if need be; of a large one only
    `members`."""
    own = _own_codename()
    codenames = (own, *(name for name in RELEASES.values() if name != own))
    kept = [name for name in codenames if _tree(name, package).exists()]
    reasons = []
    for codename in kept or codenames:
        try:
            if not kept:
                _fetch(codename, package, members)
        except EnvironmentProblem as error:
            reasons.append(str(error))
            continue
        if codename != own:
            print(f"suites: {package}: {own}'s source is not to be had; this is {codename}'s", file=sys.stderr)
        return _tree(codename, package)
    raise EnvironmentProblem("; ".join(reasons))


def _tree(codename: str, package: str) -> Path:
    return roots_folder() / "suites" / codename / package / "tree"


def _own_codename() -> str:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    version = release.get("VERSION_ID", "").strip('"')
    if release.get("ID") != "debian" or version not in RELEASES:
        raise EnvironmentProblem(f"the suites come from Debian {' or '.join(RELEASES)}, and this is neither")
    return RELEASES[version]


def _fetch(codename: str, package: str, members: Sequence[str]) -> None:
    folder = _tree(codename, package).parent
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run has left
    folder.mkdir(parents=True)
    print(f"suites: fetching the source of {package} ({codename})", file=sys.stderr)
    state = folder.parent / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    listed = state / "sources.list"
    listed.write_text(f"deb-src [signed-by={_KEYRING}] {mirror()} {codename} main\n")
    options = {
        "Dir::Etc::SourceList": listed,
        "Dir::Etc::SourceParts": "-",
        "Dir::State": state / "state",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": state / "cache",
        # What is fetched goes into the user's folder, where apt's own user may not write.
        "APT::Sandbox::User": "root",
        "APT::Update::Error-Mode": "any",
    }
    apt = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    for command in ([*apt, "update"], [*apt, "source", "--download-only", package]):
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
            reason = errors[0] if errors else f"exit status {done.returncode}"
            raise EnvironmentProblem(f"{package} of {codename} cannot be fetched (is there a network?): {reason}")
    _unpack(package, folder, members)


def _unpack(package: str, folder: Path, members: Sequence[str]) -> None:
    archives = [path for path in folder.glob(f"{package}_*.orig.tar.*") if path.suffix != ".asc"]
    if len(archives) != 1:
        raise EnvironmentProblem(f"{folder}: not one source archive but {len(archives)}; remove that folder")
    new = folder / "new"
    new.mkdir()
    wildcards = ["--wildcards", *(f"*/{member}" for member in members)] if members else []
    tar = ["tar", "-xf", str(archives[0]), "-C", str(new), "--strip-components=1", "--no-same-owner", *wildcards]
    done = subprocess.run(tar, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        raise EnvironmentProblem(f"{archives[0]}: {(done.stderr.strip().splitlines() or ['cannot be unpacked'])[-1]}")
    new.rename(folder / "tree")
