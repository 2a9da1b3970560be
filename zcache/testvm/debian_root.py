"""A command in a minimal Debian of its own: what a new user's machine has, and no more.

usage: .venv/bin/python -m zcache.testvm.debian_root RELEASE [--fresh] -- COMMAND…
(as root; scripts/test --debian)

The root is what `mmdebstrap --variant=minbase` makes from this machine's own mirror, and what
`scripts/setup` then installs in it: so a package that setup forgets is missing there, whatever the
developer's machine has. It is kept, and made anew when `scripts/setup` or `pyproject.toml` have
changed, for what an older one installed would hide that. The command runs in a copy of this tree,
/zcache, in namespaces of its own for mounts and processes: whatever it leaves is unmounted and
ended with it. /tmp is this machine's.

Its test VM is that Debian, too: `scripts/vm` boots the newest kernel in /boot on the root file
system that it finds.
"""

import argparse
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zcache.errors import EnvironmentProblem, ZcacheError
from zcache.testvm import REPOSITORY

#: What can be asked for, and what Debian calls it.
RELEASES: Final = {"12": "bookworm", "13": "trixie"}

#: Where the tree lies in it.
TREE: Final = Path("/zcache")

#: What of the tree survives a new copy: setup and the tools fill these.
_KEPT: Final = (".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "zcache.egg-info")
_STAMP: Final = "zcache-root.stamp"
#: Not where Debian's own package of them, which comes with others, would write over it.
_CERTIFICATES: Final = Path("/etc/zcache-test-certificates.crt")
_NAMES_CERTIFICATES: Final = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")

#: Runs with the root as $1, in a mount namespace of its own; the rest is the command.
_ENTER: Final = """
set -eu
root=$1; shift
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs tmpfs "$root/run"
mount --bind /tmp "$root/tmp"
mkdir "$root/run/lock"
exec chroot "$root" "$@"
"""


def main(words: Sequence[str] | None = None) -> int:
    """The command's exit status; 125 where the root cannot be had, with one line."""
    words = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(
        prog="debian_root", usage="%(prog)s RELEASE [--fresh] -- COMMAND…", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("release", choices=RELEASES, metavar="RELEASE", help="12 or 13")
    parser.add_argument("--fresh", action="store_true", help="make the root anew")
    split = words.index("--") if "--" in words else len(words)
    arguments, command = parser.parse_args(words[:split]), words[split + 1 :]
    if not command:
        parser.error("the command goes after a --")
    try:
        return run(arguments.release, command, arguments.fresh)
    except (ZcacheError, OSError) as error:
        print(f"debian_root: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


def run(release: str, command: Sequence[str], is_fresh: bool = False) -> int:
    """The exit status of `command`, in the tree's copy in the root, which is made first if need
    be."""
    if os.geteuid() != 0:
        raise EnvironmentProblem("only root can make another root, and run in it")
    folder = roots_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, release):
        root = folder / f"debian-{release}"
        wanted = f"{release} {_setup_digest()}"
        stamp = root / _STAMP
        if is_fresh or not stamp.exists() or stamp.read_text() != wanted:
            _make(root, RELEASES[release], wanted)
        _give_network(root)
        _copy_tree(root / TREE.relative_to("/"))
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER, "enter", str(root)]
        inside = f"cd {TREE} && {shlex.join(command)}; exit $?"  # no exec: a shell, as init, collects orphans
        return subprocess.run([*enter, "/bin/sh", "-c", inside], env=_environment(), check=False).returncode


def roots_folder() -> Path:
    """Where they are kept: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zcache"


@contextmanager
def _locked(folder: Path, release: str) -> Iterator[None]:
    """One at a time in a root."""
    with (folder / f"debian-{release}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                "debian_root: waiting for another run (with another XDG_CACHE_HOME there is no need)", file=sys.stderr
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _setup_digest() -> str:
    files = (REPOSITORY / "scripts/setup", REPOSITORY / "pyproject.toml")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _make(root: Path, codename: str, stamp: str) -> None:
    print(f"debian_root: making a minimal {codename}", file=sys.stderr)
    new = root.with_suffix(".new")
    for old in (root, new):
        if old.exists():
            shutil.rmtree(old)
    command = ["mmdebstrap", "--variant=minbase", "--quiet", codename, str(new), mirror()]
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if made.returncode:
        reason = (made.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentProblem(f"mmdebstrap could not make {codename} (is there a network?): {reason}")
    (new / _STAMP).write_text(stamp)
    new.rename(root)


def mirror() -> str:
    """The one that this machine's own packages come from."""
    ask = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Component: main"]
    targets = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()
    mirrors = [target for target in targets if not target.rstrip("/").endswith("-security")]
    if not mirrors:
        raise EnvironmentProblem("apt knows of no mirror (apt-get indextargets): there is nothing to make a root from")
    return mirrors[0]


def _give_network(root: Path) -> None:
    """Names are looked up as here, and pip trusts whom it trusts here."""
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    certificates = _certificates()
    if certificates:
        shutil.copy(certificates, root / _CERTIFICATES.relative_to("/"))


def _certificates() -> str | None:
    named = filter(None, map(os.environ.get, _NAMES_CERTIFICATES))
    return next((name for name in named if Path(name).is_file()), None)


def _environment() -> dict[str, str]:
    """A login's, and what is said to pip and to our tests."""
    names = [name for name in os.environ if name.startswith(("PIP_", "ZCACHE_")) or name in ("CI", "TERM")]
    passed = {name: os.environ[name] for name in names}
    passed.pop("PIP_FIND_LINKS", None)  # a folder of this machine's
    if _certificates():
        passed |= dict.fromkeys(_NAMES_CERTIFICATES, str(_CERTIFICATES))
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {**passed, "HOME": "/root", "PATH": path, "LANG": "C.UTF-8"}


def _copy_tree(target: Path) -> None:
    """What git would commit, with what is not committed yet; or all of a tree that is not git's."""
    target.mkdir(exist_ok=True)
    for entry in target.iterdir():
        if entry.name not in _KEPT:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    for name in files_of_the_tree():
        source = REPOSITORY / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def files_of_the_tree() -> list[str]:
    """What is not git's to ignore, by its path in the tree."""
    # safe.directory: the tree may be another user's, and we are root.
    ask = ["git", "-c", f"safe.directory={REPOSITORY}", "ls-files", "-coz", "--exclude-standard"]
    try:
        listed = subprocess.run(ask, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        listed = None
    if listed and listed.returncode == 0:
        return listed.stdout.split("\0")[:-1]
    files = [path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*") if path.is_file()]
    return [str(path) for path in files if path.parts[0] not in (*_KEPT, ".git") and "__pycache__" not in path.parts]


if __name__ == "__main__":
    sys.exit(main())
