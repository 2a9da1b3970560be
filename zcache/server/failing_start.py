"""What becomes of a start that fails, whatever the front end."""

import contextlib
import os
from collections.abc import Callable, Iterator

from zcache.hardening import limits
from zcache.hardening.log_pipe import say
from zcache.steps import Steps


@contextlib.contextmanager
def or_end(steps: Steps, abandon: Callable[[], None]) -> Iterator[None]:
    """Part of the start: whatever fails in it ends the process with one line, and as if nothing had
    been begun."""
    try:
        yield
    except BaseException as error:  # no memory in the middle of an import has many names
        with contextlib.suppress(NameError):  # there is no server yet
            abandon()
        say(f"zcache: {limits.explain(f'the start failed, {steps.name}', error)}")
        os._exit(1)
