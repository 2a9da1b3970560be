"""nbdkit as the server sees it (`zcache.server.front_end`)."""

from typing import Final

from nbd_plugin.captive import temporary_folder, turn_clients_away
from nbd_plugin.nbdkit_process import psk_file
from zcache.block.failures import Failures
from zcache.server.front_end import FrontEnd

#: Threads for clients that are tried, and counted, at the start; each connection takes one.
CLIENT_THREADS: Final = 2


def front_end(failures: Failures) -> FrontEnd:
    """Of the process that nbdkit runs in, whose requests fail as `failures` says."""
    return FrontEnd(
        client_threads=CLIENT_THREADS,
        say_counts=lambda at_the_end: failures.say_counts(at_the_end=at_the_end),
        turn_clients_away=turn_clients_away,
        temporary_folder=temporary_folder,
        keys=psk_file,
    )
