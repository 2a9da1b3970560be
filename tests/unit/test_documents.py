"""The documents: short lines, links and names that lead somewhere, and a row for each counter."""

import re
from functools import cache
from pathlib import Path

import pytest

from zcache.statistics import Statistics

REPOSITORY = Path(__file__).resolve().parents[2]
SHOWN_FIRST = ("README.md", "ARCHITECTURE.md")
DOCUMENTS = sorted(
    path.relative_to(REPOSITORY)
    for pattern in ("*.md", "zcache/**/*.md", "nbd_plugin/**/*.md", "tests/**/*.md")
    for path in REPOSITORY.glob(pattern)
)


@cache
def prose(document: Path) -> str:
    """Without blocks of code, line by line."""
    kept, is_code = [], False
    for line in (REPOSITORY / document).read_text().splitlines():
        is_fence = line.lstrip().startswith("```")
        is_code ^= is_fence
        kept.append("" if is_code or is_fence else line)
    return "\n".join(kept)


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_no_line_of_prose_is_over_100_columns(document: Path) -> None:
    lines = enumerate(prose(document).splitlines(), 1)
    assert not [number for number, line in lines if len(line) > 100 and not line.startswith("|")]


@pytest.mark.parametrize("name", SHOWN_FIRST)
def test_what_is_read_first_is_short(name: str) -> None:
    assert len((REPOSITORY / name).read_text().splitlines()) < 200


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_leads_somewhere(document: Path) -> None:
    folder = (REPOSITORY / document).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (folder / path).resolve() if path else REPOSITORY / document
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.relative_to(REPOSITORY)), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_file_that_is_named_exists(document: Path) -> None:
    """As a path from the top: a file that moves is a document that changes."""
    named = re.findall(r"`((?:zcache|nbd_plugin|tests|scripts)/[\w./-]+)`", prose(document))
    assert not [name for name in named if not (REPOSITORY / name).exists()]


def test_every_counter_has_a_meaning() -> None:
    text = prose(Path("zcache/control/README.md")).partition("## Counters")[2].partition("\n## ")[0]
    assert not [name for name in Statistics().as_dict() if f"`{name}`" not in text]
