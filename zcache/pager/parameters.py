"""What a region's store is told."""

from collections.abc import Sequence
from typing import Final

from zcache.allocators.choice import ALLOCATORS, DEFAULT_ALLOCATOR
from zcache.errors import BadInput
from zcache.pages.entry import PAGE_BYTES

#: Of a server's parameters, those that a pager has.
PARAMETERS: Final = (
    "allocator",
    "backing",
    "budget",
    "codec",
    "control",
    "encrypt",
    "force",
    "overcommit",
    "recompress",
)


def store_words(size_bytes: int, parameters: dict[str, str]) -> dict[str, str]:
    """What a server would be told: with a budget for all pages, even if none compresses, of memory
    that is taken as it is needed; with a backing, a quarter of that."""
    for key, value in parameters.items():
        if key not in PARAMETERS:
            raise BadInput(f"{key}={value}: unknown parameter; give {', '.join(PARAMETERS)}")
    chosen = ALLOCATORS.get(parameters.get("allocator", ""), ALLOCATORS[DEFAULT_ALLOCATOR])
    most_frames = chosen.frames_for(size_bytes // PAGE_BYTES) // (4 if parameters.get("backing") else 1)
    budget_bytes = max(most_frames, chosen.min_budget_frames) * chosen.frame_bytes
    return {"size": str(size_bytes), "budget": str(budget_bytes), **parameters}


def sorted_out(words: Sequence[str]) -> dict[str, str]:
    """`key=value` words, as they were given to a command. Raises `BadInput`."""
    given: dict[str, str] = {}
    for word in words:
        key, is_given, value = word.partition("=")
        if not is_given:
            raise BadInput(f"{word}: give key=value, such as size={word}")
        if key in given:
            raise BadInput(f"{word}: {key} is given twice; give each key once")
        given[key] = value
    return given
