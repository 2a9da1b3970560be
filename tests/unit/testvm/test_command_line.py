"""What `scripts/vm` makes of its arguments, and which exit status it makes of a run."""

import argparse
from pathlib import Path

import pytest

from zcache.bench.run.__main__ import kernel_troubles
from zcache.errors import BadInput
from zcache.testvm import VmConfig, VmResult, kvm
from zcache.testvm.__main__ import exit_code, parse
from zcache.testvm.arguments import whole_number
from zcache.testvm.vm import run_in_vm


def test_defaults_are_those_of_the_config() -> None:
    line = parse(["--", "true"])
    assert line.config(()) == VmConfig()
    assert line.command == ["true"]


@pytest.mark.parametrize(("least", "text"), [(1, "0"), (1, "-1"), (1, "1.5"), (1, ""), (1, "\uff11"), (192, "191")])
def test_what_is_no_whole_number(least: int, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"a whole number, {least} or more"):
        whole_number(least)(text)
    assert whole_number(least)(str(least)) == least


def test_every_option_reaches_the_config() -> None:
    line = parse(
        [
            *(
                "--memory",
                "640M",
                "--cpus",
                "4",
                "--timeout",
                "90.5",
                "--disk",
                "1G",
                "--disk",
                "/images/a.img",
            ),
            *("--share", "/share", "--kernel-log", "/log", "--append", "a=1 b", "--append", "c"),
            *(
                "--hung-task-panic",
                "--network",
                "--host-swap",
                "size=1G",
                "ram=256M",
                "--status",
                "/status",
                "--",
                "true",
            ),
        ]
    )
    assert line.disks == (1 << 30, Path("/images/a.img"))
    assert line.options.status == Path("/status")
    assert line.config((Path("/images/a.img"),)) == VmConfig(
        memory="640M",
        cpus=4,
        disks=(Path("/images/a.img"),),
        kernel_args=("a=1", "b", "c"),
        timeout_seconds=90.5,
        share=Path("/share"),
        kernel_log=Path("/log"),
        hung_task_panic=True,
        host_swap=("size=1G", "ram=256M"),
        network=True,
    )


def test_the_command_is_taken_word_for_word() -> None:
    words = ["bash", "-c", 'echo "$1"', "--", "--memory", "two words", ""]
    assert parse(["--memory", "1G", "--", *words]).command == words


def test_host_swap_without_words_is_not_no_host_swap() -> None:
    assert parse(["--host-swap", "--", "true"]).config(()).host_swap == ()
    assert parse(["--", "true"]).config(()).host_swap is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["true"], "the command goes after a --"),
        (["--"], "no command after the --"),
        (["--memory", "900", "--", "true"], "--memory: '900': must be a size such as 900M or 2G"),
        (["--cpus", "0", "--", "true"], "--cpus: '0': must be a whole number, 1 or more"),
        (["--timeout", "-1", "--", "true"], "--timeout"),
        (["--timeout", "0", "--", "true"], "--timeout: '0': must be a number of seconds above 0"),
        (["--status", "s", "--", "true"], "--status is the report of the server of --host-swap"),
        (["--mem", "1G", "--", "true"], "--mem"),
        (["stray", "--", "true"], "stray"),
    ],
)
def test_wrong_options_are_refused_with_a_reason(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        parse(arguments)
    assert refusal.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (VmResult(0, False, False, Path("log"), 1.0), 0),
        (VmResult(77, False, False, Path("log"), 1.0), 77),
        (VmResult(None, True, False, Path("log"), 1.0, failure="no end"), 124),
        (VmResult(None, False, True, Path("log"), 1.0, failure="panic"), 125),
        (VmResult(None, True, True, Path("log"), 1.0, failure="no end"), 124),
        (VmResult(None, False, False, Path("log"), 1.0, failure="no boot"), 125),
    ],
)
def test_exit_status_of_the_script(result: VmResult, status: int) -> None:
    assert exit_code(result) == status


@pytest.mark.parametrize(
    ("config", "command", "reason"),
    [
        (VmConfig(), [], "no command"),
        (VmConfig(share=Path("/no/such folder")), ["true"], "/no/such folder: the guest only sees"),
        (VmConfig(share=Path("/no/such/folder")), ["true"], "the shared folder does not exist"),
        (VmConfig(disks=(Path("/no/such.img"),)), ["true"], "/no/such.img: no such disk image"),
    ],
)
def test_the_impossible_is_refused_before_anything_starts(config: VmConfig, command: list[str], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        run_in_vm(config, command)


def test_newest_kernel_compares_numbers(tmp_path: Path) -> None:
    for version in ("6.1.0-9", "6.1.0-56", "5.10.0-99"):
        (tmp_path / f"vmlinuz-{version}-amd64").touch()
    assert kvm.newest_kernel(tmp_path).name == "vmlinuz-6.1.0-56-amd64"


@pytest.mark.parametrize(("forced", "usable"), [("kvm", True), ("tcg", False)])
def test_accelerator_can_be_forced(monkeypatch: pytest.MonkeyPatch, forced: str, usable: bool) -> None:
    monkeypatch.setenv("ZCACHE_ACCEL", forced)
    assert kvm.usable_kvm() is usable


def test_a_wrong_accelerator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZCACHE_ACCEL", "hvf")
    with pytest.raises(BadInput, match="must be kvm or tcg"):
        kvm.usable_kvm()


@pytest.mark.parametrize(
    ("line", "trouble"),
    [
        ("[   12.3] I/O error, dev nbd0, sector 8 op 0x1:(WRITE)", True),
        ("[   12.3] Read-error on swap-device (43:0:128)", True),
        ("[   12.3] INFO: task kswapd0:44 blocked for more than 61 seconds.", True),
        ("[   12.3] Kernel panic - not syncing: hung_task: blocked tasks", True),
        ("[   12.3] block nbd0: Connection timed out", True),
        ("[   12.3] Out of memory: Killed process 221 (stress-ng-vm)", True),
        ("[   12.3] kernel BUG at mm/swapfile.c:1234!", True),
        ("[   12.3] invalid opcode: 0000 [#1] PREEMPT SMP", True),
        ("[   12.3] nbdkit[312]: segfault at 8 ip 00007f error 4 in libpython3.11.so", True),
        ("[   12.3] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", True),
        ("[   12.3] block nbd0: Possible stuck request 00000000: control (write@0,4096B). Runtime 30 seconds", True),
        ("[    0.0] Command line: sysctl.kernel.hung_task_warnings=10 WARNING: oops=panic", False),
        ("[   12.3] block nbd0: shutting down sockets", False),
        ("[   12.3] Adding 524284k swap on /dev/nbd0.  Priority:100", False),
    ],
)
def test_what_counts_as_trouble_in_a_kernel_log(line: str, trouble: bool) -> None:
    assert kernel_troubles(line) == ([line] if trouble else [])
