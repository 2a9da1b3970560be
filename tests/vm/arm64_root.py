"""A root file system and kernels of Debian 13 for arm64, made on any Debian from its own mirror,
without running any of it.

Packages are only extracted: no foreign binary runs on this machine, so nothing is configured, and
what maintainer scripts would have made and is needed (a few links and files) is made here.
Downloads are verified by apt against the keyring of this Debian. Everything is kept in the cache
folder; delete it to have newer packages.
"""

import contextlib
import fcntl
import lzma
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from zcache.errors import EnvironmentProblem
from zcache.testvm import REPOSITORY, say
from zcache.testvm.debian_root import RELEASES, files_of_the_tree, mirror, roots_folder

SUITE: Final = RELEASES["13"]
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: Debian's names of the kernels, by the size of their pages in KiB. There is none with 64.
KERNELS: Final = {4: "linux-image-arm64", 16: "linux-image-arm64-16k"}
#: What swap-up needs, what compiles the page loop, and what brings a guest up.
PACKAGES: Final = (
    *("base-files", "bash", "busybox-static", "coreutils", "dash", "grep", "kmod", "libnbd-bin", "mount", "nbdkit"),
    *(
        "gcc",
        "libc6-dev",
        "libpython3.13-dev",
        "nbdkit-plugin-python",
        "procps",
        "python3",
        "python3-libnbd",
        "util-linux",
    ),
)
#: What the initramfs loads, and swap-up.
BOOT_MODULES: Final = ("virtio_blk", "crc32c_generic", "crc32c-generic", "libcrc32c", "ext4")
MODULES: Final = (*BOOT_MODULES, "nbd")
PYTHON: Final = "3.13"
SITE: Final = Path(f"usr/local/lib/python{PYTHON}/dist-packages")
#: Where the guest finds this tree.
TREE: Final = Path("zcache")
IMAGE_MIB: Final = 1300


def cache_folder() -> Path:
    """Where downloads and what is made of them are kept."""
    return roots_folder() / "arm64"


class Arm64Root:
    """Made once, in `folder`, by one process at a time; what a guest boots is made of it for
    each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder / "root"
        self._kernels = folder / "kernels"

    def make(self) -> None:
        """Download and extract what is not there yet. Raises `EnvironmentProblem`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._make()

    def _make(self) -> None:
        stamp = self._folder / "stamp"
        wanted = "\n".join([SUITE, *PACKAGES, *KERNELS.values(), *MODULES, *_requirements()])
        if stamp.exists() and stamp.read_text() == wanted:
            return
        say(f"making a root of Debian {SUITE} for arm64 in {self._folder} (250 MB to download)")
        for folder in (self._root, self._kernels):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for package in self._download():
            self._extract(package)
        self._install_wheels()
        self._configure()
        stamp.write_text(wanted)

    def kernel(self, page_kib: int) -> Path:
        """A bootable image."""
        ending = "16k" if page_kib == 16 else "arm64"
        return next(self._kernels.glob(f"boot/vmlinuz-*{ending}"))

    def initramfs(self, page_kib: int, into: Path) -> Path:
        """One that mounts /dev/vda, and goes on with /init there; made in a folder that is
        given."""
        modules = self.kernel(page_kib).name.removeprefix("vmlinuz-")
        folder = into / "initramfs"
        for name in ("bin", "dev", "proc", "sys", "root"):
            (folder / name).mkdir(parents=True)
        shutil.copy(self._root / "usr/bin/busybox", folder / "bin/busybox")
        loads = []
        for path in self._with_dependencies(modules, BOOT_MODULES):
            (folder / path.name.removesuffix(".xz")).write_bytes(lzma.decompress(path.read_bytes()))
            loads.append(f"insmod /{path.name.removesuffix('.xz')}\n")
        init = folder / "init"
        init.write_text(
            "#!/bin/busybox sh\nset -e\n/bin/busybox --install -s /bin\nexport PATH=/bin\n"
            "mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n"
            f"{''.join(loads)}"
            "until [ -b /dev/vda ]; do sleep 0.1; done\n"
            "mount -t ext4 /dev/vda /root\n"
            "umount /proc /sys\nmount --move /dev /root/dev\nexec switch_root /root /init\n"
        )
        init.chmod(0o755)
        image = folder.with_suffix(".cpio")
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        with image.open("wb") as output:
            subprocess.run(
                ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
                input="\n".join(names).encode(),
                stdout=output,
                cwd=folder,
                check=True,
            )
        return image

    def image(self, page_kib: int, init: str, into: Path) -> Path:
        """An ext4 image of all of it: the modules of one kernel, this tree, and `init` as the first
        program."""
        with self._locked():
            return self._image(page_kib, init, into)

    def _image(self, page_kib: int, init: str, into: Path) -> Path:
        root = self._root
        modules = self.kernel(page_kib).name.removeprefix("vmlinuz-")
        shutil.rmtree(root / "usr/lib/modules", ignore_errors=True)
        for path in self._with_dependencies(modules, MODULES):
            place = root / path.relative_to(self._kernels)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
        shutil.rmtree(root / TREE, ignore_errors=True)
        for name in files_of_the_tree():
            (root / TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / TREE / name, follow_symlinks=False)
        (root / "init").write_text(init)
        (root / "init").chmod(0o755)
        image = into / "root.ext4"
        quiet = ["-q", "-F", "-E", "root_owner=0:0", "-O", "^metadata_csum"]
        _run(["mkfs.ext4", *quiet, "-d", str(root), str(image), f"{IMAGE_MIB}M"])
        return image

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The folder itself is the lock."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _download(self) -> list[Path]:
        """With an apt that has a folder, and a list of installed packages (none), of its own."""
        apt = self._folder / "apt"
        for name in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "lists/partial", "cache/archives/partial"):
            (apt / name).mkdir(parents=True, exist_ok=True)
        (apt / "status").write_text("")
        (apt / "etc/apt/sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {SUITE} main\n")
        configuration = self._folder / "apt.conf"
        configuration.write_text(
            f'Dir "{apt}"; Dir::State "{apt}"; Dir::Cache "{apt}/cache"; Dir::State::status "{apt}/status";\n'
            'APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Install-Recommends "false";\n'
            'APT::Sandbox::User "root"; Acquire::Languages "none";\n'
        )
        environment = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C.UTF-8"}
        _run(["apt-get", "-q", "update", "-o", "APT::Update::Error-Mode=any"], environment)
        wanted = [*PACKAGES, *KERNELS.values()]
        _run(["apt-get", "-q", "-y", "--download-only", "install", *wanted], environment)
        return sorted((apt / "cache/archives").glob("*.deb"))

    def _extract(self, package: Path) -> None:
        """Into the root, or, a kernel, beside it."""
        into = self._kernels if package.name.startswith("linux-image-") else self._root
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as files:
            _run(["tar", "-x", "--keep-directory-symlink", "-C", str(into), "-f", "-"], stdin=files.stdout)
        if files.returncode:
            raise EnvironmentProblem(f"{package} is damaged; remove it")

    def _install_wheels(self) -> None:
        pip = [str(REPOSITORY / ".venv/bin/python"), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 28, 34)]
        target = ["--target", str(self._root / SITE), "--python-version", PYTHON, "--only-binary=:all:"]
        _run([*pip, *platforms, *target, *_requirements()])
        (self._root / SITE / "zcache.pth").write_text(f"/{TREE}\n")

    def _configure(self) -> None:
        """What maintainer scripts do, as far as it is missed."""
        etc = self._root / "etc"
        (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
        (etc / "group").write_text("root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n")
        for name in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/zoneinfo"):
            shutil.rmtree(self._root / name, ignore_errors=True)

    def _with_dependencies(self, release: str, wanted: Iterable[str]) -> list[Path]:
        """The files of modules, each after those that it needs; what a kernel has built in has
        none."""
        files = {path.name.split(".")[0].replace("-", "_"): path for path in self._modules(release)}
        ordered: list[Path] = []

        def add(name: str) -> None:
            path = files.get(name.replace("-", "_"))
            if path is None or path in ordered:
                return
            found = re.search(rb"\0depends=([^\0]*)\0", lzma.decompress(path.read_bytes()))
            for other in found[1].decode().split(",") if found else []:
                add(other)
            ordered.append(path)

        for name in wanted:
            add(name)
        return ordered

    def _modules(self, release: str) -> Iterator[Path]:
        return (self._kernels / "usr/lib/modules" / release).rglob("*.ko.xz")


def _requirements() -> list[str]:
    """The Python packages of this tree, from its pyproject.toml."""
    requirements: list[str] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    return requirements


def _run(command: list[str], environment: dict[str, str] | None = None, stdin: object = subprocess.DEVNULL) -> None:
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False, env=environment)  # type: ignore[call-overload]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentProblem(f"{command[0]} failed: {last}")
