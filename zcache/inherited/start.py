"""How each program of ours begins: `put_right`, before it does anything else, and `run` for a
command."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zcache.inherited import attributes, descriptors, environment
from zcache.linux import standard_streams

#: Says that the process of that pid has been run once more.
_AGAIN_VARIABLE: Final = "ZCACHE_AGAIN"

FOLDER_IS_GONE: Final = "the folder that this was started in is gone; cd to another one, or give absolute paths"


def put_right(words: Sequence[str] = ()) -> str:
    """What was inherited, in the process's only thread. `words` are its arguments, which may name
    descriptors. Returns what could not be put right, in one line; "" if all was.

    Does not return where it takes another exec(2).
    """
    standard_streams.open_missing()
    has_been_again = os.environ.pop(_AGAIN_VARIABLE, "") == str(os.getpid())
    descriptors.drop_strangers(os.environ, words)
    descriptors.close_unnamed(descriptors.named(words, os.environ))
    is_once_more, complaints = attributes.put_right(is_kept=any(word.startswith("standby=") for word in words))
    is_once_more |= environment.clean(os.environ)
    if is_once_more and not has_been_again:
        os.environ[_AGAIN_VARIABLE] = str(os.getpid())
        try:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        except OSError as error:
            del os.environ[_AGAIN_VARIABLE]
            complaints.append(f"what it takes another exec for ({error.strerror})")
    if not complaints:
        return ""
    return f"inherited from who started this, and not to be changed without privileges: {', '.join(complaints)}"


def is_folder_gone() -> bool:
    """Whether the working folder was removed: a relative path means nothing then."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def run(name: str, main: Callable[[], int], lost_output: int | None = None, *, is_told: bool = True) -> int:
    """A command, for the whole of a process: `standard_streams.run`, after all was put right."""
    complaint = put_right(sys.argv[1:])

    def told_main() -> int:
        if complaint and is_told:
            print(f"{name}: warning: {complaint}", file=sys.stderr)
        try:
            return main()
        except FileNotFoundError:
            if not is_folder_gone():
                raise
            print(f"{name}: error: {FOLDER_IS_GONE}", file=sys.stderr)
            return 1

    return standard_streams.run(name, told_main, lost_output)
