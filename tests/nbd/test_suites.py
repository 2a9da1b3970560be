"""The stand-ins of `tests.suites`, with real servers: the runner finds a wrong byte."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.suites import serving
from tests.suites.running import Case, Runner, Verdict, descendants
from zcache.linux import libc

COPY = """rm -f pid socket
head -c 4194304 /dev/urandom >image
nbdkit {} memory 4M {}
nbdcopy image "nbd+unix:///?socket=$PWD/socket" && nbdcopy "nbd+unix:///?socket=$PWD/socket" back && cmp image back
"""
RUN = """head -c 4194304 /dev/urandom >image
nbdkit -U - --filter=offset memory 5M offset=1M --run 'nbdcopy image "$uri" && nbdcopy "$uri" back && cmp image back'
"""


@pytest.fixture(autouse=True)
def _reaper() -> Iterator[None]:
    """As the command is: what a script leaves running comes to this process, and is ended with the
    case."""
    before = descendants()
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    yield
    left = descendants()
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 0)
    assert left == before


@pytest.mark.parametrize("script", [COPY.format("-P pid -U socket", ""), RUN], ids=["background", "run"])
def test_a_copy_through_zcache_passes_and_a_wrong_byte_is_found(tmp_path: Path, script: str) -> None:
    case = Case("copy", ("sh", "-c", script), tmp_path)
    runner = Runner(tmp_path / "work")
    result = runner.judge(case, {})
    assert result.verdict is Verdict.PASSED, result
    assert runner.can_fail(case)


def test_a_disk_of_no_whole_pages_is_cut_to_its_size(tmp_path: Path) -> None:
    case = Case("size", ("sh", "-c", "nbdkit -U - memory 1000 --run 'test $(nbdinfo --size $uri) = 1000'"), tmp_path)
    run = Runner(tmp_path / "work").run(case, serving.ZCACHE)
    assert run.status == 0 and serving.served(run.folder), run.output


def test_what_is_not_for_zcache_reaches_the_real_nbdkit(tmp_path: Path) -> None:
    script = "nbdkit -U - memory 1M allocator=malloc --run 'nbdinfo $uri'"
    run = Runner(tmp_path / "work").run(Case("info", ("sh", "-c", script), tmp_path), serving.ZCACHE)
    assert run.status == 0 and not serving.served(run.folder), run.output
    assert serving.remarks(run.folder) == ["the memory plugin's allocators"]
