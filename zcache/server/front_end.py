"""What a server needs of its front end: of whatever brings it requests, and is built upon it.

The front end calls the server (`server.py` says in which order), and reads and writes the pages of
its store. What the server asks in return is here, and nothing else of the front end is known to it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from zcache.errors import BadInput


def _nothing(*_arguments: object) -> None:
    """For a front end that has nothing of the kind."""


class KeyFile(NamedTuple):
    """What clients are let in by."""

    option: str  # that has named it, for a message
    path: Path

    def check_readable(self) -> None:
        """Whether the front end will be able to read it, now that the process has no privileges;
        raises `BadInput`."""
        try:
            os.close(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise BadInput(
                f"{self.option}={self.path}: {error.strerror}, and without its privileges the server reads it for "
                "each client; give a file that belongs to its user, in folders that do"
            ) from None


class FrontEnd(NamedTuple):
    """Callables, each called by the thread that starts or ends the server, but for `say_counts`."""

    #: Threads for clients that are tried, and counted, at the start; each connection takes one.
    client_threads: int = 0
    #: Called now and then, and at the end (True): say how often what was said has come again.
    say_counts: Callable[[bool], None] = _nothing
    #: After a refusal: whoever has come to the front end, or comes, is sent away.
    turn_clients_away: Callable[[], None] = _nothing
    #: A folder of the front end's that it empties and removes at its end, and needs leave for.
    temporary_folder: Callable[[], Path | None] = _nothing
    #: A file that it reads again for each client, and needs leave for.
    keys: Callable[[], KeyFile | None] = _nothing
