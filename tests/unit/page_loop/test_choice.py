"""Which page loop is in use, and what is said of it."""

import subprocess
import sys
from pathlib import Path

import pytest

import zcache
from tests.support.page_loops import page_loops

REPOSITORY = Path(__file__).resolve().parents[3]
SAY = """
from zcache.page_loop.choice import PAGE_LOOP, check, described
check()
print(PAGE_LOOP.name, "-", described())
"""
#: A lz4 that does not show its functions; no compiled code at all.
HIDDEN = "from lz4.block import _block; _block.__file__ = '/nonexistent/lz4.so'; "
LINE = {
    "compiled": "page loop: compiled",
    "python": "page loop: in Python, which takes more CPU (the compiled one was not built)",
}
MISSING = "import sys; sys.modules['zcache.page_loop._compiled'] = None; "


def said(before: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", f"{before}\n{SAY}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)


def test_it_is_the_compiled_one_where_there_is_one() -> None:
    assert said().stdout == f"{page_loops()[-1].name} - {LINE[page_loops()[-1].name]}\n"


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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("compiled.version = '0.0.1'", "what was compiled is of zcache 0.0.1: build it anew"),
        ("del compiled.version", "what was compiled is of zcache before 0.2.0: build it anew"),
        ("del compiled.use_lz4", "module 'zcache.page_loop._compiled' has no attribute 'use_lz4'"),
    ],
)
def test_an_object_of_other_code_is_not_used(change: str, why: str) -> None:
    """As pip leaves one in `build/`, and installs it when a compilation fails."""
    if len(page_loops()) < 2:
        pytest.skip("NOT run: no C compiler, and so no compiled page loop")
    before = f"import zcache.page_loop._compiled as compiled; {change}; "
    assert said(before).stdout == f"python - page loop: in Python, which takes more CPU ({why})\n"


def test_it_is_of_this_version() -> None:
    assert f'#define VERSION "{zcache.__version__}"' in (REPOSITORY / "zcache/page_loop/module.c").read_text()


@pytest.mark.parametrize("wanted", ["nonsense", "COMPILED", "python "])
def test_what_is_neither_is_refused_in_one_line(wanted: str) -> None:
    refused = said(ZCACHE_PAGE_LOOP=wanted)
    assert refused.returncode and refused.stderr.endswith(f"ZCACHE_PAGE_LOOP={wanted}: give python or compiled\n")


def test_the_reference_on_request() -> None:
    assert said(ZCACHE_PAGE_LOOP="python").stdout.startswith("python - ")
