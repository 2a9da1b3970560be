"""The identity of processes and how they are ended, with real children."""

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from zcache.linux import process
from zcache.linux.process import ProcessIdentity


def test_stat_of_a_command_with_brackets_and_blanks() -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    assert process.parse_stat(f"7 (a) b) (c) S {fields}") == ("S", 22)


def test_a_reused_pid_is_not_taken_for_the_old_process(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    stat = tmp_path / "7" / "stat"
    stat.write_text("7 (nbdkit) S " + " ".join(str(number) for number in range(4, 53)))
    old = process.identify(7, tmp_path)
    assert old == ProcessIdentity(7, 22)
    assert process.is_running(old, tmp_path)
    stat.write_text("7 (sshd) S " + " ".join(str(number + 1) for number in range(4, 53)))
    assert not process.is_running(old, tmp_path)


def test_a_zombie_is_gone(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (nbdkit) Z " + " ".join(str(number) for number in range(4, 53)))
    assert process.identify(7, tmp_path) is None


def test_stop_never_signals_a_process_with_another_start_time() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        identity = process.identify(child.pid)
        assert identity is not None
        impostor = ProcessIdentity(identity.pid, identity.start_time_ticks - 1)
        assert process.stop(impostor, term_seconds=1) == "gone"
        assert child.poll() is None
        assert process.stop(identity, term_seconds=10) == "ended"
        assert not process.is_running(identity)


def test_stop_kills_what_does_not_end() -> None:
    stubborn = "trap '' TERM; echo ready; while :; do sleep 1; done"
    with subprocess.Popen(["sh", "-c", stubborn], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        identity = process.identify(child.pid)
        assert identity is not None
        assert process.stop(identity, term_seconds=0.1) == "killed"


def test_a_strangers_memory_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be swapped out to a device whose server has died."""
    for pid, leader, argument in ((7, 5, "control=a"), (8, 5, "control=b"), (9, 6, "control=a")):
        (tmp_path / str(pid)).mkdir()
        fields = ["S", "1", str(pid), str(leader), *map(str, range(7, 53))]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (nbd kit) " + " ".join(fields))
        (tmp_path / str(pid) / "cmdline").write_bytes(b"nbdkit\0" + argument.encode() + b"\0")
    looked_at = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: looked_at.append(path) or read_bytes(path))  # type: ignore[func-returns-value]
    assert list(process.in_session(5, "control=a", tmp_path)) == [ProcessIdentity(7, 22)]
    assert sorted(path.parent.name for path in looked_at) == ["7", "8"]


def test_a_process_is_found_by_its_session() -> None:
    words = ["setsid", "sh", "-c", "echo $$; read -r _", "sh", "control=/no/such/control"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        leader = int(child.stdout.readline())
        (found,) = process.in_session(leader, "control=/no/such/control")
        assert found.pid == leader
        assert not list(process.in_session(leader, "control=/another"))
        assert not list(process.in_session(leader + 1, "control=/no/such/control"))
        assert process.stop(found, term_seconds=10) == "ended"


def test_the_leader_of_a_session_that_it_has_left_behind_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pid is still the session's, and so Linux 6.1 says something else of it than of one that
    is nobody's."""

    def of_no_process(_pid: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "pidfd_open", of_no_process)
    assert process.stop(ProcessIdentity(7, 22), term_seconds=1) == "gone"


def test_a_family_and_what_it_has(tmp_path: Path) -> None:
    def line(name: str, kib: int) -> str:
        return f"{name}:\t{kib} kB\n"

    for pid, children in ((7, "8 9"), (8, ""), (9, "10"), (10, "11")):  # 11 has ended
        task = tmp_path / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        (task / "children").write_text(children)
    assert list(process.family(7, tmp_path)) == [7, 8, 9, 10, 11]
    (tmp_path / "8" / "status").write_text("Name:\tpython\n" + line("VmRSS", 900) + line("RssAnon", 100))
    (tmp_path / "8" / "smaps_rollup").write_text("0-f ---p 0 00:00 0 [rollup]\n" + line("Pss", 70) + line("SwapPss", 5))
    assert process.status_bytes(8, "RssAnon", tmp_path) == 100 << 10
    assert process.share_bytes(8, tmp_path) == 75 << 10
    assert process.status_bytes(11, "RssAnon", tmp_path) == process.share_bytes(11, tmp_path) == 0
    assert process.status_bytes("self", "VmRSS") > 1 << 20 < process.share_bytes(os.getpid())


def test_children_that_run_are_found() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True) as shell:
        try:
            end = time.monotonic() + 10
            while len(found := list(process.family(shell.pid))) < 2:
                assert time.monotonic() < end
            assert found[0] == shell.pid and process.parent(found[1]) == shell.pid
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
