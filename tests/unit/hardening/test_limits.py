"""What stands against a process: which limit it was, how much is missing, and what to give. In
words and figures that are asked of a kernel that is not this one."""

import errno
import os
import resource
from pathlib import Path

import pytest

from zcache.errors import BadInput, EnvironmentProblem
from zcache.hardening import limits
from zcache.image.image import Geometry, Image, new_descriptor
from zcache.linux import meminfo
from zcache.pageframes.ram import Ram

MIB = 1 << 20


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"CommitLimit": 510 * MIB, "Committed_AS": 400 * MIB, "MemAvailable": 300 * MIB}
    monkeypatch.setattr(meminfo, "is_overcommit_strict", lambda: True)
    monkeypatch.setattr(meminfo, "read_bytes", lambda name: figures[name])


@pytest.mark.usefixtures("strict")
def test_what_the_kernel_will_not_promise_is_said_with_the_figures() -> None:
    limits.check_promise(110 * MIB, "or give a smaller budget")
    with pytest.raises(BadInput) as refused:
        limits.check_promise(150 * MIB, "or give a smaller budget")
    for part in ("vm.overcommit_memory=2", "40 MiB more", "CommitLimit 510 MiB", "Committed_AS 400 MiB", "ratio"):
        assert part in str(refused.value)


def test_without_strict_overcommit_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meminfo, "is_overcommit_strict", lambda: False)
    limits.check_promise(1 << 60, "")


def test_which_rule_it_is_is_asked_of_the_kernel(tmp_path: Path) -> None:
    rule = tmp_path / "overcommit_memory"
    for word, is_strict in (("0\n", False), ("1\n", False), ("2\n", True)):
        rule.write_text(word)
        assert meminfo.is_overcommit_strict(rule) is is_strict
    assert not meminfo.is_overcommit_strict(tmp_path / "absent")


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "Committed_AS 400 MiB"),
        (OSError(errno.ENOMEM, "no memory"), "vm.overcommit_ratio"),
        (OSError(errno.EMFILE, "too many"), "ulimit -n"),
        (OSError(errno.EFBIG, "too large"), "ulimit -f"),
        (OSError(errno.EAGAIN, "try again"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
    ],
)
def test_an_error_of_the_kernels_names_the_limit_and_what_to_do(error: Exception, said: str) -> None:
    assert said in limits.in_words(error)
    line = limits.explain("the start failed, making the store", error)
    assert line.startswith("the start failed, making the store: ") and said in line and "\n" not in line


def test_an_error_of_ours_says_all_itself() -> None:
    assert limits.explain("the start failed, anywhere", EnvironmentProblem("no disk; give one")) == "no disk; give one"


def test_what_nobody_has_foreseen_is_one_line_with_its_place() -> None:
    try:
        raise KeyError("a\nb")
    except KeyError as error:
        line = limits.explain("the start failed, making the store", error)
    assert "KeyError" in line and "test_limits.py:" in line and "\n" not in line


def test_lifting_raises_each_soft_limit_as_far_as_it_goes() -> None:
    """In a process of its own."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, hard), hard))
            limits.lift()
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            status = 0 if soft in (hard, resource.RLIM_INFINITY) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.usefixtures("strict")
def test_ram_slots_without_an_image_are_promised_one_by_one_and_given_back() -> None:
    ram = Ram(64, 65536, None)
    ram.populate(lambda: None)
    assert ram.is_populated()
    ram.view[5 * 65536] = 7
    ram.mark([5], True)
    ram.give_back([5])
    ram.get_back([5])
    assert ram.view[5 * 65536] == 0, "it went to the system, and came back"


def test_the_tables_of_an_image_can_be_allocated_whole() -> None:
    geometry = Geometry(
        page_count=1 << 20,
        slot_count=1 << 10,
        frame_count=1 << 12,
        frame_bytes=65536,
        encrypt="yes",
        allocator="log",
        backing=None,
    )
    descriptor = new_descriptor()
    try:
        image = Image.new(descriptor, geometry)
        beats: list[None] = []
        image.allocate_tables(lambda: beats.append(None))
        sections = geometry.sections()
        tables_bytes = sum(sections.values()) - sections["ram"]
        assert tables_bytes <= os.fstat(descriptor).st_blocks * 512 < tables_bytes + (1 << 16) and beats
    finally:
        os.close(descriptor)
