"""A start of which one step fails comes to an end: it serves all the same, or says why in one line,
and leaves nothing.

Each call of a start that asks the kernel for something is made to fail
(`tests.support.failing_calls`). Here a few of each kind; all of them, one after the other, with `-m
thorough` (half an hour), or by `python -m tests.support.failing_start`.
"""

import platform
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.failing_calls import Call
from tests.support.failing_start import REPOSITORY, Outcome, start_alone, start_kept
from zcache.linux.libc import PR_SET_IO_FLUSHER

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the numbers of x86-64's system calls")

#: At a time: most of a start is waiting, for the processor of the machine's other half.
STARTS = 2

#: Whose stack, or whose interpreter's, cannot be had: a start that waited for the thread then
#: waited for ever.
FRAME_STACK_BYTES = 0x4000


def chosen(calls: Sequence[Call]) -> list[int]:
    """The last call of each kind, of each program, and all by which threads begin; numbered from
    1."""
    last: dict[tuple[str, str], int] = {}
    found = set()
    for number, call in enumerate(calls, 1):
        last[call.program, call.name] = number
        if call.name == "mmap" and call.arguments[1] == FRAME_STACK_BYTES:
            found.add(number)
    return sorted(found | set(last.values()))


def troubles(start: Callable[[int], Outcome], numbers: Sequence[int]) -> list[str]:
    with ThreadPoolExecutor(STARTS) as pool:
        outcomes = list(pool.map(start, numbers))
    return [
        f"{number}: {outcome.failed}: {outcome.trouble()}: {outcome.said}"
        for number, outcome in zip(numbers, outcomes, strict=True)
        if outcome.trouble()
    ]


@pytest.mark.parametrize("start", [pytest.param(start_alone, marks=pytest.mark.thorough), start_kept])
def test_a_call_that_fails_ends_the_start_in_one_line_or_is_done_without(start: Callable[[int], Outcome]) -> None:
    whole = start(0)
    assert not whole.trouble() and whole.status is None, whole.said
    numbers = chosen(whole.calls)
    assert len(numbers) > 20
    assert troubles(start, numbers) == []


def changed_code(folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of the code, in which one thing is different."""
    for package in ("zcache", "nbd_plugin"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / name
    text = module.read_text()
    assert old in text
    module.write_text(text.replace(old, new))
    return folder


@pytest.fixture
def impatient(tmp_path: Path) -> Path:
    """With a deadline of seconds for each step that says no other."""
    return changed_code(tmp_path, "zcache/steps.py", "STEP_SECONDS: Final = 60.0", "STEP_SECONDS: Final = 6.0")


@pytest.fixture
def strict(tmp_path: Path) -> Path:
    """That takes the kernel for one with strict overcommit, which the machine's may well be: its
    limits are."""
    rule = tmp_path / "overcommit_memory"
    rule.write_text("2\n")
    return changed_code(tmp_path, "zcache/linux/meminfo.py", "/proc/sys/vm/overcommit_memory", str(rule))


@pytest.mark.parametrize("start", [start_alone, start_kept])
def test_under_strict_overcommit_it_starts(start: Callable[..., Outcome], strict: Path) -> None:
    """As far as it depends on the rule alone; the kernel's part is in the VM (tests/vm)."""
    outcome = start(0, code=strict)
    assert outcome.status is None and not outcome.trouble(), outcome.said


@pytest.mark.parametrize("start", [start_alone, start_kept])
def test_a_call_that_never_returns_is_named_and_ended(start: Callable[..., Outcome], impatient: Path) -> None:
    """In the kernel, with the interpreter's lock held."""

    def sets_io_flusher(call: Call) -> bool:
        return (call.program, call.name, call.arguments[0]) == ("nbdkit", "prctl", PR_SET_IO_FLUSHER)

    outcome = start(sets_io_flusher, is_held=True, code=impatient)
    assert not outcome.has_hung and outcome.status not in (None, 0)
    assert len(outcome.complaints()) == 1, outcome.said
    (line,) = outcome.complaints()
    assert "stands still at its start, applying the protection io_flusher" in line
    assert not outcome.left


@pytest.mark.thorough
@pytest.mark.parametrize("start", [start_alone, start_kept])
def test_every_call_that_fails_does(start: Callable[[int], Outcome]) -> None:
    whole = start(0)
    assert troubles(start, range(1, len(whole.calls) + 1)) == []
