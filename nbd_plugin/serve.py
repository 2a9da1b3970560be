"""scripts/serve: becomes nbdkit in the foreground, with the plugin, in the environment that both
need.

- nbdkit's options come first, then `key=value` parameters. `-f` is given (a daemon logs to syslog,
  whose reader may be swapped out).
- One thread a connection: it answers one request after the other, and so all that it has read.
- nbdkit's Unix socket is for its owner alone; the mask that makes it so is the plugin's to set, for
  nbdkit sets its own first (`Server.get_ready`). A program that is run with --run inherits it.
- A small thread stack: nbdkit sets no stack size, so RLIMIT_STACK is what every thread gets.
- All else that whoever starts it hands on is put right first (`zcache.inherited`), limits of the
  shell among them.
- Without a keeper, a process of ours watches the start from outside (`zcache.server.start_guard`).
"""

import os
import sys
from pathlib import Path
from typing import Final

from nbd_plugin.nbdkit_options import (
    LAST_WORDS,
    arguments_of,
    refuse_no_keys,
    refuse_what_opens_later,
    split_words,
    warnings_of,
)
from zcache.errors import BadInput
from zcache.hardening import limits
from zcache.hardening.log_pipe import say
from zcache.inherited.start import FOLDER_IS_GONE, is_folder_gone, put_right
from zcache.linux import standard_streams
from zcache.parameters import help_text
from zcache.server.program import free_socket, guard_start, is_kept, is_successor, prepare_python
from zcache.steps import Steps

#: For each connection. With a second one, nbdkit may abort (`nbdkit_options.py`), and refuses a
#: request that one has read with ESHUTDOWN if the other reads the end of the stream before it is
#: begun. Operations a second with 1, 2, 4 and 16 threads, by fio's nbd engine (256 MiB over a
#: budget of 64 MiB, two CPUs, medians of 2): 4 KiB writes at depth 32: 47868, 31672, 18551, 22083;
#: 4 KiB reads at depth 32, most of them cold: 12665, 21780, 20154, 20888; under swap (stress-ng,
#: test VM) all alike.
THREADS: Final = 1

#: What nbdkit asks for before it has read a word: 192 MiB of memory that it never uses, libraries,
#: and Python.
NBDKIT_BYTES: Final = 208 << 20

#: Threads of a server with a device and nothing else (`needs.thread_count`), and the process that
#: watches its start.
LEAST_TASKS: Final = 8

#: Of Debian's.
NBDKIT_PACKAGES: Final = "nbdkit nbdkit-plugin-python"

#: How nbdkit's options begin that say where to listen, or that end it before it does.
_PLACES: Final = (
    *("-U", "--unix", "-p", "--port", "-i", "--ip", "--vsock", "--single"),
    *("--help", "--version", "--dump-", "--short-options", "--long-options"),
)


def command_line(words: list[str]) -> list[str]:
    """What to execute for the words given to scripts/serve."""
    options, parameters = split_words(words)
    threads = [] if any(word.startswith(("-t", "--threads")) for word in options) else ["-t", str(THREADS)]
    plugin = Path(__file__).resolve().with_name("plugin.py")
    return ["nbdkit", "-f", *threads, *options, "python", str(plugin), *parameters]


def names_a_place(options: list[str]) -> bool:
    """Whether nbdkit's options say where to listen, or that it shall not; or it is given a socket
    to listen on."""
    return "LISTEN_FDS" in os.environ or any(word.startswith(_PLACES) or word in ("-s", "-V") for word in options)


def print_help() -> int:
    """zcache's keys, and where nbdkit's own options are."""
    print("usage: serve [nbdkit's options] -U PATH key=value…\n\nServe one zcache device, in the foreground.\n")
    print(f"keys:\n{help_text()}\n\nnbdkit's options, such as where to listen: nbdkit --help, and nbdkit(1)")
    return 0


def main() -> None:
    """Does not return."""
    complaint = put_right(sys.argv[1:])
    options, parameters = split_words(sys.argv[1:])
    if "--help" in options:
        sys.exit(standard_streams.run("serve", print_help, lost_output=2))
    for word in parameters:
        if any("\udc80" <= character <= "\udcff" for character in word):  # how Python keeps such bytes in arguments
            sys.exit(f"zcache: {ascii(word)[1:-1]}: not UTF-8, in which alone nbdkit passes parameters on")
    if not names_a_place(options):
        sys.exit(
            "zcache: say where to listen: -U PATH (a Unix socket), or -U - with --run; "
            "without it nbdkit opens a port to the network"
        )
    try:
        refuse_what_opens_later(options, parameters)
        refuse_no_keys(options)
        for text in arguments_of(options, "-U", "--unix"):
            free_socket("-U", text)
    except BadInput as refusal:
        sys.exit(f"zcache: {refusal}")
    for warning in warnings_of(options):
        say(f"zcache: WARNING: {warning}")
        if warning.startswith("-t"):
            os.environ[LAST_WORDS] = "1"
    if complaint and not is_kept(parameters):
        say(f"zcache: WARNING: {complaint}")
    prepare_python()
    try:
        if not is_successor(parameters):  # which does not refuse: the pages are here already
            limits.check(mapped_bytes=NBDKIT_BYTES, private_bytes=NBDKIT_BYTES, why="for nbdkit; raise it")
            limits.check_promise(NBDKIT_BYTES, "or end other programs")
            limits.check_tasks(LEAST_TASKS, "for the least server and a client")
        guard_start(
            parameters,
            sockets=arguments_of(options, "-U", "--unix"),
            pid_files=arguments_of(options, "-P", "--pidfile", "--pid-file"),
        )
    except BadInput as refusal:
        sys.exit(f"zcache: {refusal}")
    except OSError as error:
        if is_folder_gone():
            sys.exit(f"zcache: {FOLDER_IS_GONE}")
        sys.exit(f"zcache: {limits.explain('nobody could be left to watch the start', error)}")
    Steps.from_environment(is_passed_on=True).begin("becoming nbdkit")
    try:
        os.execvp("nbdkit", command_line(sys.argv[1:]))
    except OSError as error:
        is_checkout = (Path(__file__).parents[1] / "scripts/setup").exists()
        remedy = "run scripts/setup" if is_checkout else f"apt-get install {NBDKIT_PACKAGES}"
        sys.exit(f"serve: cannot run nbdkit: {error.strerror}; {remedy}")


if __name__ == "__main__":
    main()
