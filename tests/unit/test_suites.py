"""The runner of other projects' suites: what it makes of a test that fails, hangs, skips itself, or
never comes to zcache."""

from pathlib import Path

import pytest

from tests.suites import running, serving
from tests.suites.__main__ import Summary, run
from tests.suites.running import Case, Result, Runner, Verdict
from tests.suites.stand_in_nbdkit import disk_of, parse, parse_size

SERVES = f'echo served >>"${serving.FOLDER}/journal"; '


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def case(script: str, name: str = "test") -> Case:
    return Case(name, ("sh", "-c", script), Path("/tmp"))


def only(server: str, script: str) -> str:
    return f'if [ "${serving.SERVER}" = {server} ]; then {script}; fi; '


@pytest.mark.parametrize(
    ("script", "verdict", "why"),
    [
        (f"{SERVES} exit 0", Verdict.PASSED, "exit status 0"),
        (f"{SERVES} {only('zcache', 'echo wrong; exit 1')}", Verdict.FAILED, "exit status 1: wrong"),
        (f"{SERVES} {only('zcache', 'kill -SEGV $$')}", Verdict.FAILED, "exit status -11"),
        (f"{SERVES} {only('zcache', 'exit 77')}", Verdict.FAILED, "skips itself"),
        (f"{SERVES} echo no tool; exit 1", Verdict.LEFT_OUT, "fails with its own server, too: exit status 1: no tool"),
        ("echo no fuse; exit 77", Verdict.LEFT_OUT, "skips itself: no fuse"),
        ("exit 0", Verdict.LEFT_OUT, "wants what zcache is not"),
        (f'echo 130000 bytes >>"${serving.FOLDER}/journal"', Verdict.LEFT_OUT, "zcache is not: 130000 bytes"),
    ],
)
def test_what_an_outcome_says_about_zcache(runner: Runner, script: str, verdict: Verdict, why: str) -> None:
    result = runner.judge(case(script), {})
    assert result.verdict is verdict and why in result.why


def test_no_end_is_a_failure(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SECONDS", 1)
    result = runner.judge(case(SERVES + only("zcache", "sleep 60")), {})
    assert result.verdict is Verdict.FAILED and "no end after 1 s" in result.why


def test_what_is_excluded_is_not_run(runner: Runner, tmp_path: Path) -> None:
    result = runner.judge(case(f"touch {tmp_path}/ran"), {"test": "a reason"})
    assert result == Result("test", Verdict.LEFT_OUT, "a reason") and not (tmp_path / "ran").exists()


def test_a_suite_that_finds_no_wrong_byte_is_not_good(runner: Runner) -> None:
    blunt = run("suite", runner, [case(SERVES, "control"), case(SERVES, "other")], {}, "control")
    assert blunt.count(Verdict.PASSED) == 2 and not blunt.is_good
    runner = Runner(runner.work / "sharp")
    sharp = run("suite", runner, [case(SERVES + only("lying", "exit 1"), "control")], {}, "control")
    assert sharp.is_good


@pytest.mark.parametrize("verdicts", [(), (Verdict.LEFT_OUT,), (Verdict.PASSED, Verdict.FAILED)])
def test_a_suite_that_ran_nothing_or_failed_is_not_good(verdicts: tuple[Verdict, ...]) -> None:
    assert not Summary("suite", tuple(Result("test", verdict, "") for verdict in verdicts), True, 1.0).is_good


def test_a_sleep_waits_for_a_stand_in_on_its_way(runner: Runner) -> None:
    mark = f'"${serving.FOLDER}/{serving.STARTING}$$"'
    late = f"sh -c ': >{mark}; /usr/bin/sleep 2; touch up; rm {mark}' & /usr/bin/sleep 0.5; sleep 0; test -e up"
    assert runner.run(Case("test", ("sh", "-c", late), runner.work), serving.ZCACHE).status == 0


def test_nbdkit_words_in_any_order() -> None:
    options, plugin, parameters = parse(["-U", "-", "memory", "1M", "--filter=cow", "--run", "true", "cow-x=1"])
    assert options == ["-U", "-", "--filter=cow", "--run", "true"] and plugin == "memory"
    assert disk_of(parameters) == (1 << 20, ["cow-x=1"])
    assert disk_of(["size=10M"]) == (10 << 20, [])
    assert disk_of(["130000"]) == (130000, [])
    assert "more than zcache can number" in disk_of(["9223372036854775807"])
    assert disk_of(["16M", "allocator=malloc"]) == "the memory plugin's allocators"
    assert [parse_size(text) for text in ("1", "8s", "1k", "2G", "x")] == [1, 4096, 1024, 2 << 30, None]
