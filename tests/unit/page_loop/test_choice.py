"""Which page loop is in use, and what is said of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.page_loops import page_loops

REPOSITORY = Path(__file__).resolve().parents[3]
SAY = "from zcache.page_loop.choice import PAGE_LOOP, described; print(PAGE_LOOP.name, '-', described())"
#: A lz4 that does not show its functions; no compiled code at all.
HIDDEN = "from lz4.block import _block; _block.__file__ = '/nonexistent/lz4.so'; "
MISSING = "import sys; sys.modules['zcache.page_loop._compiled'] = None; "


def said(before: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", before + SAY]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)


def test_it_is_the_compiled_one_where_there_is_one() -> None:
    assert said().stdout == f"{page_loops()[-1].name} - page loop: {page_loops()[-1].name}\n"


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (MISSING, "the compiled one was not built"),
        (HIDDEN, "/nonexistent/lz4.so is not loaded"),
        (HIDDEN.replace("'/nonexistent/lz4.so'", "None"), " does not show its lz4"),
    ],
)
def test_without_it_there_is_the_reference_and_a_line_that_says_why(before: str, why: str) -> None:
    if before != MISSING and len(page_loops()) < 2:
        pytest.skip("NOT run: no C compiler, and so no compiled page loop")
    assert said(before).stdout == f"python - page loop: in Python, which takes more CPU ({why})\n"
    refused = said(before, ZCACHE_PAGE_LOOP="compiled")
    assert refused.returncode and refused.stderr.endswith(f"ZCACHE_PAGE_LOOP=compiled: {why}\n")


def test_the_reference_on_request() -> None:
    assert said(ZCACHE_PAGE_LOOP="python").stdout.startswith("python - ")
