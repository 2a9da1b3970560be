"""The test VM itself: can its answers be trusted? A boot takes 12-20 s under emulation: each is
used well."""

import io
import subprocess
from pathlib import Path

import pytest

from zcache.testvm import REPOSITORY, VmConfig, VmResult, swap_server, vm

# Boots on a machine that is busy with other guests have taken ten times as long as on an idle one.
PATIENCE_SECONDS = 400

AWKWARD_WORDS = ["two words", "it's", '"$HOME" `id` $(id)', "new\nline", "", "\\", "é*?;&|<>"]

# Status 7 unless each thing that the guest promises holds; then 42.
PROBE = """
set -e
printf '%s\\0' "$@" > "$SHARE/words"
cp /proc/swaps "$SHARE/swaps"
cat /proc/sys/kernel/hung_task_timeout_secs > "$SHARE/hung"
readlink -f /dev/disk/by-id/virtio-vmdisk0 > "$SHARE/disk"
echo scratch > /tmp/scratch
if touch zcache/written 2>/dev/null; then exit 7; fi
echo to-stdout; echo to-stderr >&2; echo to-the-log > /dev/kmsg
exit 42
"""


def no_process_names(text: str) -> bool:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in entry.read_bytes():
                return False
        except OSError:
            continue  # It ended while we looked.
    return True


@pytest.fixture
def share(tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


def test_command_words_status_streams_and_swap(tmp_path: Path, share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact words and status, streams apart, a disk, a writable share, and swap on a server on the
    host."""

    def memory_server(socket_path: Path, _words: list[str]) -> list[str]:
        return ["nbdkit", "--foreground", "--unix", str(socket_path), "memory", "256M"]

    monkeypatch.setattr(swap_server, "serve_command", memory_server)
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"")
    with disk.open("r+b") as image:
        image.truncate(1 << 20)
    config = VmConfig(
        disks=(disk,),
        share=share,
        kernel_log=tmp_path / "kernel,log",
        timeout_seconds=PATIENCE_SECONDS,
        host_swap=(),
    )
    stdout, stderr = io.BytesIO(), io.BytesIO()
    command = ["env", f"SHARE={share}", "bash", "-c", PROBE, "probe", *AWKWARD_WORDS]

    result = vm.run_in_vm(config, command, stdout, stderr)

    assert (result.exit_status, result.failure) == (42, None), result
    assert not result.timed_out and not result.panicked
    assert (share / "words").read_bytes().decode().split("\0")[:-1] == AWKWARD_WORDS
    swap_rows = (share / "swaps").read_text().splitlines()[1:]
    assert len(swap_rows) == 1 and swap_rows[0].startswith("/dev/vd")
    assert (share / "hung").read_text() == "60\n"
    assert (share / "disk").read_text().startswith("/dev/vd")
    assert stdout.getvalue() == b"to-stdout\n"
    assert stderr.getvalue() == b"to-stderr\n"
    kernel_log = result.kernel_log.read_bytes()
    assert b"Linux version" in kernel_log and b"to-the-log" in kernel_log
    assert b"to-stdout" not in kernel_log
    assert result.server_exit_status == 0
    assert no_process_names(str(result.kernel_log.parent))


def test_panic_is_a_failure_of_the_machine_and_its_log_is_kept(tmp_path: Path) -> None:
    """Through the script: 125, one line that says why, and the log with the reason in it."""
    kernel_log = tmp_path / "kernel.log"
    crash = "echo before; echo c > /proc/sysrq-trigger; sleep 60; exit 0"
    argv = [str(REPOSITORY / "scripts/vm"), "--memory", "600M", "--timeout", str(PATIENCE_SECONDS)]
    argv += ["--kernel-log", str(kernel_log), "--", "bash", "-c", crash]

    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    assert done.returncode == 125, done.stderr
    assert done.stdout == "before\n"
    assert done.stderr.splitlines()[-1] == f"vm: the guest's kernel panicked; kernel log: {kernel_log}"
    assert "Kernel panic - not syncing: sysrq triggered crash" in kernel_log.read_text(errors="replace")


def test_timeout_dumps_the_tasks_kills_and_is_reported(tmp_path: Path) -> None:
    config = VmConfig(memory="600M", kernel_log=tmp_path / "kernel.log", timeout_seconds=40)

    result: VmResult = vm.run_in_vm(config, ["sleep", "1000"], io.BytesIO(), io.BytesIO())

    assert result.timed_out
    assert result.exit_status is None
    assert result.failure == "no end after 40 s"
    # The dump adds a few seconds; far less than the command would have.
    assert result.seconds < 200
    log = result.kernel_log.read_text(errors="replace")
    assert "sysrq: Show Blocked State" in log
    assert "sysrq: Show State" in log
    assert no_process_names(str(result.kernel_log))
