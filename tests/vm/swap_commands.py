"""The guest's half of test_swap_commands.py: scripts/swap-up and swap-down on a real kernel, in
good and bad days.

Runs as root in the test VM: the scenes that are named, or all (some 10 minutes under emulation):

    scripts/vm --memory 500M --disk 560M --timeout 1200 -- \\
        .venv/bin/python -m tests.vm.swap_commands

The first thing that is not as it should be is an AssertionError, and exit status 1.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import wrong_starts
from zcache.control.ask import ask
from zcache.image import image
from zcache.image.signs import Signs
from zcache.keeper.launch import is_answering
from zcache.keeper.state import StateFolder
from zcache.linux import libc, meminfo
from zcache.linux.proc_swaps import ProcSwaps
from zcache.linux.process import identify
from zcache.swap import hibernation

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = [Path("/proc/sys/vm/watermark_boost_factor"), Path("/proc/sys/vm/min_free_kbytes")]
#: Holds MiB of noise, and says at the end whether it is still what it was.
HOG = """
import hashlib, os, sys
held = []
for _ in range(int(sys.argv[1])):
    block = os.urandom(1 << 20)
    held.append((block, hashlib.sha256(block).digest()))
print("held", flush=True)
input()
print("intact" if all(hashlib.sha256(block).digest() == digest for block, digest in held) else "changed")
"""
#: Fills MiB of shared memory, which asks for more while it waits for none of it; and says the same
#: of some of it.
FILLER = """
import mmap, os, sys
size = int(sys.argv[1]) << 20
noise, memory = os.urandom(1 << 20), mmap.mmap(-1, size)
pages = [(start, start.to_bytes(8, "little") + noise[start % (1 << 20):][:1000]) for start in range(0, size, 4096)]
for start, content in pages:
    memory[start:start + len(content)] = content
print("held", flush=True)
input()
print("intact" if all(memory[start:start + len(content)] == content for start, content in pages[::8]) else "changed")
"""


def command(script: str, *words: str) -> list[str]:
    """What the script becomes once it has looked at the set-up, which takes seconds here."""
    module = {"swap-up": "up", "swap-down": "down", "swap-upgrade": "upgrade"}[script]
    return [sys.executable, "-I", "-m", f"zcache.swap.{module}", *words]


def run(script: str, *words: str, status: int = 0) -> str:
    """What it said; its exit status is as expected."""
    done = subprocess.run(command(script, *words), capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == status, f"{script} {words}: {done.returncode}\n{said}"
    assert "Traceback" not in said, said
    return said


def swap_areas() -> list[str]:
    return [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]


def attached_devices() -> list[str]:
    return sorted(path.parent.name for path in Path("/sys/block").glob("nbd*/pid"))


def servers() -> list[int]:
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            # A zombie has ended: init, which has to collect it, may wait for swap itself.
            if comm.read_text() == "nbdkit\n" and identify(int(comm.parent.name)):
                found.append(int(comm.parent.name))
        except OSError:
            continue  # it ended while we looked
    return found


def serving() -> int:
    """The server, of it and its standby."""
    return int(ask(StateFolder().control, "status")["pid"])


def settings() -> list[str]:
    return [path.read_text() for path in SETTINGS]


def nothing_is_left(before: list[str], *folders: Path) -> None:
    assert not (swap_areas() or attached_devices() or servers()), (swap_areas(), attached_devices(), servers())
    assert settings() == before, (settings(), before)
    assert not any(folder.exists() for folder in (Path("/run/zcache"), *folders))
    assert not Path("/run/zcache-sysctls.json").exists()
    assert not hibernation.injection().exists()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def wrong_starter(before: list[str]) -> None:
    """Each command by somebody whose settings are all wrong (tests/nbd/test_wrong_starts.py,
    without a device)."""
    zcache = [str(REPOSITORY / "scripts/zcache"), "status"]
    for words in (command("swap-up", "size=64M", "budget=64M"), zcache, command("swap-upgrade"), command("swap-down")):
        wrongs = [
            name for name in wrong_starts.ALL if name != "signals pending"
        ]  # by which the script's shell is ended
        done = subprocess.run(
            wrong_starts.command(tuple(wrongs), words), capture_output=True, text=True, timeout=200, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "warning: inherited" not in said, f"{words}: {done.returncode}\n{said}"
        assert words is not zcache or "state: OK" in said, said
    nothing_is_left(before)


def two_areas_at_once(before: list[str]) -> None:
    other = Path("/run/other")
    subprocess.run([str(REPOSITORY / "scripts/swap-up"), "size=64M", "budget=64M", "hardening=require"], check=True)
    run("swap-up", "--state-folder", str(other), "--priority", "5", "size=64M", "budget=64M", "codec=zstd:1")
    assert len(swap_areas()) == len(attached_devices()) == 2 and len(servers()) == 4  # a standby for each
    assert settings()[0] == "0\n" and int(settings()[1]) >= 16384
    assert "already up" in run("swap-up", "size=64M", "budget=64M", status=1)
    assert ask(StateFolder().control, "check")["balanced"]
    run("swap-down")
    assert len(swap_areas()) == len(attached_devices()) == 1 and len(servers()) == 2
    assert settings()[0] == "0\n"
    subprocess.run([str(REPOSITORY / "scripts/swap-down"), str(other)], check=True)
    nothing_is_left(before, other)
    assert "nothing is up" in run("swap-down")


def bad_parameters(before: list[str]) -> None:
    assert "size=65M" in run("swap-up", "size=65M", "budget=64M", status=1)
    nothing_is_left(before)


def interrupted_swap_ups(before: list[str]) -> None:
    """SIGINT at whatever it is doing then: nothing is left, or the swap is on and says so."""
    backing = Path("/tmp/made-by-swap-up")
    words = ("size=72M", "budget=64M", f"backing={backing}")
    for seconds in (0.5, 1.5, 2.5, 3.5, 5.0):
        with subprocess.Popen(command("swap-up", *words), stderr=subprocess.PIPE, text=True) as up:
            time.sleep(seconds)
            up.send_signal(signal.SIGINT)
            _, said = up.communicate(timeout=60)
        too_early = "KeyboardInterrupt" in said  # while Python itself was starting: nothing was begun
        assert up.returncode in (130, -signal.SIGINT, 0) or too_early, (up.returncode, said)
        if StateFolder().state.exists():
            assert len(swap_areas()) == 1 and (up.returncode == 0 or "too late" in said), said
            assert f"backing {backing}: removed" in run("swap-down")
        nothing_is_left(before)
        assert not backing.exists(), said


def killed_swap_ups(before: list[str]) -> None:
    """SIGKILL as soon as there is a server, and as soon as there is a device: swap-down finds what
    there is."""
    for moment in (servers, attached_devices):
        with subprocess.Popen(command("swap-up", "size=64M", "budget=64M")) as up:
            while not moment():  # it keeps a time limit of its own, and a slow guest may need more than a minute
                assert up.poll() is None, "swap-up ended before it got there"
                time.sleep(0.05)
            up.kill()
        run("swap-down")
        nothing_is_left(before)


def beside_other_swap(before: list[str]) -> None:
    """zram of the same priority, zswap in front, a kernel with nbd built in (no folder of modules),
    a backing file that is not there, a control group that loses its limit: all of it is said, or
    put right; and nobody to read it."""
    backing, zswap = Path("/tmp/made-by-swap-up"), Path("/sys/module/zswap/parameters/enabled")
    for tool in ("modprobe nbd", "modprobe zram num_devices=1", "mount -t tmpfs none /lib/modules"):
        subprocess.run(tool.split(), check=True)
    Path("/sys/block/zram0/disksize").write_text("64M")
    for tool in ("mkswap /dev/zram0", "swapon --priority 100 /dev/zram0"):
        subprocess.run(tool.split(), check=True)
    zswap.write_text("Y")
    words = ("size=24M", "budget=16M", f"backing={backing}")
    said = run("swap-up", *words)
    assert "/dev/zram0: the same priority as /dev/nbd0 (100)" in said and "zswap is on" in said, said
    shown = status()
    assert "state: OK" in shown and f"backing: {backing} (swap-up has made it" in shown, shown
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["/dev/zram0", "/dev/nbd0"], shown
    controllers = Path("/sys/fs/cgroup/cgroup.subtree_control")
    a_limit_that_is_taken_away(lambda: controllers.write_text("-memory"))
    assert f"backing {backing}: removed" in run("swap-down") and not backing.exists()
    with Path("/dev/full").open("wb") as full:
        up = command("swap-up", "--keep-backing", *words)
        for script in (up, command("swap-upgrade"), command("swap-down")):
            assert subprocess.run(script, stdout=full, check=False, timeout=300).returncode == 0, script
    assert backing.exists()
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    for script in (command("swap-up", *words), command("swap-down")):
        assert subprocess.run([*closed, *script], check=False, timeout=300).returncode == 0, script
    assert backing.exists()  # it was there before the second
    zswap.write_text("N")
    for tool in ("swapoff /dev/zram0", "umount /lib/modules", f"rm {backing}"):
        subprocess.run(tool.split(), check=True)
    nothing_is_left(before)


def a_limit_that_is_taken_away(take_away: Callable[[], object]) -> None:
    """While the keeper does not look, status says so; then it is put back."""
    state = StateFolder().load()
    assert state
    os.kill(state.keeper.pid, signal.SIGSTOP)
    take_away()
    shown = status()
    os.kill(state.keeper.pid, signal.SIGCONT)
    assert "state: DEGRADED" in shown and "memory.swap.max=0" in shown, shown
    wait_until(lambda: "had lost memory.swap.max=0" in StateFolder().log.read_text(), "it is not put back")
    assert "state: OK" in status()


def protections_taken_away(before: list[str]) -> None:
    """As by a package's `sysctl --system`, and by who sorts processes by name: status says so, and
    the keeper puts all back."""
    run("swap-up", "size=64M", "budget=64M")
    held = settings()
    state = StateFolder().load()
    assert state
    scores = [Path(f"/proc/{pid}/oom_score_adj") for pid in (serving(), state.keeper.pid)]
    time.sleep(1)  # the keeper has seen that the swap is on
    os.kill(state.keeper.pid, signal.SIGSTOP)
    for path, value in [*zip(SETTINGS, ("15000", "2000"), strict=True), *((score, "0") for score in scores)]:
        path.write_text(value)
    shown = status()
    os.kill(state.keeper.pid, signal.SIGCONT)
    assert "state: DEGRADED" in shown, shown
    for name in ("vm.watermark_boost_factor is 15000", "vm.min_free_kbytes is 2000", f"process {serving()} is 0"):
        assert name in shown, shown
    wait_until(lambda: settings() == held, "the settings are not put back")
    wait_until(lambda: {score.read_text() for score in scores} == {"-1000\n"}, "the scores are not put back")
    said = StateFolder().log.read_text()
    assert said.count("while the swap is on: put back") == 4, said
    assert "state: OK" in status()
    run("swap-down")
    nothing_is_left(before)


def another_network(before: list[str]) -> None:
    """Of a container, or a unit with PrivateNetwork=: nothing is started, and it is said why."""
    words = ["unshare", "--net", *command("swap-up", "size=64M", "budget=64M")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1 and "nsenter --net=/proc/1/ns/net" in done.stderr, done.stderr
    nothing_is_left(before)


def status() -> str:
    zcache = [sys.executable, "-P", "-m", "zcache.client.command"]
    return subprocess.run([*zcache, "status"], capture_output=True, text=True, check=True).stdout


def dead_server(before: list[str]) -> None:
    """A server that is killed is replaced, a keeper refuses to end; when both have died, with
    nothing swapped out to them, the swap still comes off."""
    run("swap-up", "size=64M", "budget=64M")
    os.kill(serving(), signal.SIGKILL)
    wait_until(lambda: is_answering(StateFolder().control), "no other server serves")
    assert "the new server serves" in run("swap-upgrade")
    assert ask(StateFolder().control, "check")["balanced"]
    state = StateFolder().load()
    assert state
    os.kill(state.keeper.pid, signal.SIGTERM)
    wait_until(lambda: "not ending" in StateFolder().log.read_text(), "the keeper does not refuse to end")
    assert len(swap_areas()) == 1
    os.kill(state.keeper.pid, signal.SIGKILL)
    wait_until(lambda: len(servers()) == 1, "the standby does not end with its keeper")
    (server,) = servers()
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not servers(), "the server does not die")
    assert "is gone" in run("swap-down")
    nothing_is_left(before)


@contextlib.contextmanager
def swapped_out_program(mib: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that is out as far as it can be, and nobody else: init, too, would die of a page
    that is lost. Told to by a line, it looks whether its memory is what it was."""
    group = Path("/sys/fs/cgroup/hog")
    group.mkdir()
    (group / "memory.max").write_text(str(96 << 20))
    join = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    arguments = ["sh", "-c", join, "sh", sys.executable, "-c", HOG, str(mib)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hog:
        assert hog.stdout and hog.stdout.readline() == b"held\n"
        with contextlib.suppress(BlockingIOError):  # it was less
            (group / "memory.reclaim").write_text(str(96 << 20))
        assert ask(StateFolder().control, "status")["stored_pages"] > 1000
        (group / "memory.max").write_text("max")
        yield hog
    group.rmdir()


def dead_with_pages_out(before: list[str]) -> None:
    """The keeper and the server have died: what was out is lost, and the swap comes off all the
    same, at once. Whoever asks for the program's arguments then waits for a page that nobody will
    bring."""
    run("swap-up", "size=256M", "budget=64M", "backing=/dev/disk/by-id/virtio-vmdisk0")
    with swapped_out_program(200) as hog:
        state, server = StateFolder().load(), serving()
        assert state
        os.kill(state.keeper.pid, signal.SIGKILL)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not servers(), "the server does not die")
        assert "is lost" in run("swap-down")
        hog.kill()
    nothing_is_left(before)


def double_death(before: list[str]) -> None:
    """The server and its standby are killed at once, as the full machine begins to swap: a program
    takes what they have left before a server from disk has begun to start. Nothing is lost, and
    nobody has to die for it."""
    run("swap-up", "size=512M", "budget=48M", "backing=/dev/disk/by-id/virtio-vmdisk0", "hardening=require")
    libc.mlockall(libc.MCL_CURRENT | libc.MCL_FUTURE)
    swaps = ProcSwaps()
    arguments = [sys.executable, "-c", FILLER, str(memory_mib() - 60)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as filler:
        while swaps.entries()[0].used_kib < 1024:
            time.sleep(0.01)
        for server in servers():
            os.kill(server, signal.SIGKILL)
        print(f"killed with {meminfo.read_bytes('MemAvailable') >> 20} MiB available", flush=True)
        answer, _ = filler.communicate(b"\n", timeout=200)
        assert answer == b"held\nintact\n", answer
    said = StateFolder().log.read_text()
    print(*(line for line in said.splitlines() if "keeper" in line), sep="\n", flush=True)
    assert "starting a standby" in said and "the device is connected again" in said, said
    assert "OOM" not in said, said
    swaps.close()
    run("swap-down")
    nothing_is_left(before)


def orphaned_server(before: list[str]) -> None:
    """The keeper has died while a standby took over: nobody connects the device to it but
    swap-down."""
    run("swap-up", "size=256M", "budget=64M", "backing=/dev/disk/by-id/virtio-vmdisk0")
    with swapped_out_program(200) as hog:
        state = StateFolder().load()
        assert state
        descriptor = image.of_process(state.keeper.pid)
        signs = Signs(descriptor)
        first = signs.pid
        os.kill(first, signal.SIGKILL)
        while signs.pid == first:
            time.sleep(0.001)
        os.kill(state.keeper.pid, signal.SIGKILL)
        assert not signs.connections, "the keeper was faster than this scene"
        said = run("swap-down")
        assert "connecting it to the server that is left" in said and "swap is off" in said, said
        answer, _ = hog.communicate(b"\n", timeout=60)
        assert answer == b"intact\n", answer
    os.close(descriptor)
    nothing_is_left(before)


def death_during_swap_down(before: list[str]) -> None:
    """Keeper and server die while swap-down waits for memory: it sees it, and does not wait for
    ever."""
    run("swap-up", "size=512M", "budget=48M", "backing=/dev/disk/by-id/virtio-vmdisk0", "hardening=require")
    with swapped_out_program(memory_mib() - 60) as hog:
        state, server = StateFolder().load(), serving()
        assert state
        with waiting_swap_down() as down:
            os.kill(state.keeper.pid, signal.SIGKILL)
            os.kill(server, signal.SIGKILL)
            said, _ = down.communicate(timeout=120)
            assert down.returncode == 0 and "is lost" in said and "swap is off" in said, said
        hog.kill()
    nothing_is_left(before)


def too_little_memory_to_swap_off(before: list[str]) -> None:
    """swap-down waits for memory; interrupted, it leaves everything as it was; once there is
    memory, it goes on."""
    run("swap-up", "size=512M", "budget=48M", "backing=/dev/disk/by-id/virtio-vmdisk0", "hardening=require")
    arguments = [sys.executable, "-c", HOG, str(memory_mib() - 100)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hog:
        assert hog.stdout and hog.stdout.readline() == b"held\n"
        with waiting_swap_down() as down:
            down.send_signal(signal.SIGINT)
            said, _ = down.communicate(timeout=60)
            assert down.returncode == 130 and "Traceback" not in said, (down.returncode, said)
        assert len(swap_areas()) == 1 and ask(StateFolder().control, "check")["balanced"]
        with waiting_swap_down() as down:
            hog.kill()
            said, _ = down.communicate(timeout=120)
            assert down.returncode == 0 and "swap is off" in said, said
    nothing_is_left(before)


@contextlib.contextmanager
def waiting_swap_down() -> "Iterator[subprocess.Popen[str]]":
    """A swap-down that has said that it waits for memory."""
    with subprocess.Popen(command("swap-down"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as down:
        assert down.stdout
        assert "still out" in down.stdout.readline()
        assert "more memory" in down.stdout.readline()
        yield down


@contextlib.contextmanager
def strict_rule(percent: int) -> Iterator[None]:
    """The kernel promises no more memory than this much of its RAM, and swap."""
    rules = [(Path("/proc/sys/vm/overcommit_ratio"), str(percent)), (Path("/proc/sys/vm/overcommit_memory"), "2")]
    was = [path.read_text() for path, _ in rules]
    for path, value in rules:
        path.write_text(value)
    try:
        yield
    finally:
        for (path, _), value in zip(rules, was, strict=True):
            path.write_text(value)


def strict_overcommit(before: list[str]) -> None:
    """Where the kernel promises no more than it has, the swap is turned on, and goes on when its
    server dies; where that is not enough, one line says how much is missing."""
    words = ("size=384M", "budget=64M", "backing=/dev/disk/by-id/virtio-vmdisk0", "force=yes")
    with strict_rule(80):
        run("swap-up", *words)
        os.kill(serving(), signal.SIGKILL)
        wait_until(lambda: is_answering(StateFolder().control), "no other server serves")
        assert ask(StateFolder().control, "check")["balanced"]
        run("swap-down")
    nothing_is_left(before)
    with strict_rule(20):
        said = run("swap-up", *words, status=1)
        assert "vm.overcommit_memory=2: " in said and "more than the kernel will promise" in said, said
    nothing_is_left(before)


def memory_mib() -> int:
    return meminfo.read_bytes("MemTotal") >> 20


SCENES = {
    scene.__name__: scene
    for scene in (
        wrong_starter,
        two_areas_at_once,
        beside_other_swap,
        dead_server,
        protections_taken_away,
        another_network,
        dead_with_pages_out,
        double_death,
        orphaned_server,
        death_during_swap_down,
        too_little_memory_to_swap_off,
        bad_parameters,
        strict_overcommit,
        interrupted_swap_ups,
        killed_swap_ups,
    )
}


def main(names: list[str]) -> None:
    before = settings()
    for name in names or SCENES:
        begin = time.monotonic()
        SCENES[name](before)
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
