"""swap-up: server, device, swap area, in that order, with each step's undo registered as it is
done.

Whatever fails, and wherever Ctrl-C or SIGTERM falls, the undos run in reverse and nothing is left:
no server, no socket, no attached device, no state folder.  One thing outranks that: while
/proc/swaps names the device, or the device stays attached, its server stays, whatever else went
wrong, and swap-down is left to try again.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from zcache.errors import StillSwappingError, SwapError
from zcache.inherited import start
from zcache.keeper import launch as keeper_process
from zcache.keeper.state import Backing, StateFolder, SwapState
from zcache.linux import standard_streams
from zcache.linux.process import ProcessIdentity
from zcache.parameters import FOR_PEOPLE, help_text
from zcache.swap import backing, requirements
from zcache.swap.buildup import DEFAULTS, Buildup, Options
from zcache.swap.down import take_down
from zcache.swap.interruption import Hold, Interrupted, Interruption
from zcache.swap.teardown import Report, Teardown, is_live


def bring_up(
    folder: StateFolder,
    machine: Buildup,
    hold: Hold = contextlib.nullcontext,
    options: Options = DEFAULTS,
) -> SwapState:
    """Turn the swap on, or leave nothing behind; the folder exists and is locked.

    `hold` puts off signals while a step and its undo are made one. What of the options others need
    is in the state.
    """
    undo = ExitStack()
    try:
        state = _steps(folder, machine, hold, undo, options)
    except BaseException:
        with hold():
            undo.close()
        raise
    return state


def _first_state(keeper: ProcessIdentity, below: Backing | None, options: Options) -> SwapState:
    return SwapState(keeper, backing=below, may_hibernate=options.may_hibernate, is_discarding=options.discard)


def _steps(folder: StateFolder, machine: Buildup, hold: Hold, undo: ExitStack, options: Options) -> SwapState:
    """Each step's trace in the state comes before it, for whoever finds us killed; its undo after
    it."""
    states: list[SwapState] = []

    def save(state: SwapState) -> None:
        folder.save(state)
        states.append(state)

    undo.callback(folder.remove)
    machine.load_driver()
    with hold():
        machine.start_server(lambda keeper, below: save(_first_state(keeper, below, options)))
        undo.callback(_or_keep, undo, machine.stop_server)
    machine.wait_for_server()
    with hold():
        device = machine.attach(lambda pid: save(states[-1].attached_by(pid)))
        undo.callback(_or_keep, undo, machine.detach, device)
        save(states[-1].with_device(device))
    machine.arm_keeper(device)
    with hold():
        # A descriptor lost to a signal between open and close would keep the device attached
        # (seen).
        machine.warm_up(device)
    machine.make_swap(device)
    with hold():
        undo.callback(machine.unguard_sleep)  # once nobody holds the settings, by which it knows that it is the last
        undo.callback(machine.put_back_sysctls)
        machine.hold_sysctls()
    with hold():
        undo.callback(machine.release_network_programs)
        machine.hold_network_programs()
    with hold():
        machine.guard_sleep()
    with hold():
        # Before the step, unlike the others: swapon may fail with the swap on.
        undo.callback(_or_keep, undo, _swap_off_if_on, machine, device)
        machine.swap_on(device)
    undo.pop_all()
    return states[-1]


def _swap_off_if_on(machine: Buildup, device: str) -> None:
    if machine.is_swapping(device):
        machine.swap_off(device)


def _or_keep(undo: ExitStack, step: Callable[..., None], *arguments: object) -> None:
    """An undo that the ones after it depend on: when it fails, they do not run, and the state is
    left to swap-down."""
    try:
        step(*arguments)
    except BaseException as error:  # not only ours: there may be no memory
        undo.pop_all()
        if isinstance(error, StillSwappingError) or not isinstance(error, SwapError):
            raise
        raise SwapError(f"undoing what was done: {error}; run swap-down to try again") from error


def check(options: Options) -> None:
    """What can be said before anything is done."""
    keeper_process.check_parameters(options.parameters)
    if not 0 <= options.priority <= 32767:
        raise SwapError("--priority is 0 to 32767")
    for name, seconds, least in (
        ("--timeout-seconds", options.timeout_seconds, 1),
        ("--dead-server-seconds", options.dead_connection_seconds, 30),  # or an upgrade would cost pages
        ("--start-seconds", options.start_seconds, 1),
    ):
        if not least <= seconds <= 86400:  # which nan is not
            raise SwapError(f"{name} is {least} to 86400")
    requirements.check()
    if os.geteuid() != 0:
        raise SwapError("only root can do this")
    backing.refuse_unsafe(options.parameters)


def run(options: Options, report: Report = print, hold: Hold = contextlib.nullcontext) -> SwapState:
    """Check, lock, clean up after an earlier life, and bring up."""
    check(options)
    keeper_process.try_parameters(options.parameters)
    folder = StateFolder(options.folder)
    folder.create()
    with folder.locked():
        refuse_if_up(folder, report)
        return bring_up(folder, Buildup(options, folder, report), hold, options)


def refuse_if_up(folder: StateFolder, report: Report) -> None:
    state = folder.load()
    if state is None:
        folder.refuse_if_used()
        folder.clear()
        return
    with contextlib.closing(Teardown(report)) as machine:
        if is_live(state, folder, machine):
            what = state.device or f"a keeper, pid {state.keeper.pid}"
            raise SwapError(f"already up, wholly or in part ({what}): run swap-down first")
    report(f"{folder.path} speaks of things that are gone: cleaning up")
    if state.backing:
        report(backing.remove(state.backing))
    # The folder itself stays: we hold its lock.
    folder.clear()


@contextlib.contextmanager
def swap_area(options: Options, report: Report = print) -> Iterator[SwapState]:
    """Swap for the length of a block, for scripts and tests; its end may raise StillSwappingError,
    or SwapError for a server that ended badly."""
    state = run(options, report)
    folder = StateFolder(options.folder)
    try:
        yield state
    finally:
        with folder.locked(), contextlib.closing(Teardown(report)) as machine:
            # Read again: someone may have replaced the server.
            outcome = take_down(folder.load() or state, folder, machine, report)
    if outcome != "ended":
        raise SwapError(f"the server did not end as it should: {outcome}")


def parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="swap-up",
        description="Turn zcache swap on.  Root only.",
        epilog=f"keys:\n{help_text([key for key in FOR_PEOPLE if key != 'control'])}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option: Callable[..., object] = parser.add_argument
    option("parameters", nargs="*", metavar="key=value", help="for the server, as scripts/serve takes them")
    option("--priority", type=int, default=DEFAULTS.priority, help="0 to 32767 (%(default)s)")
    option("--discard", action="store_true", help="tell the server of freed clusters (a trim each)")
    option(
        "--hibernate",
        action="store_true",
        help="take the swap off when systemd hibernates the machine, and turn it on again (without, that is refused)",
    )
    option(
        "--network-in-ram",
        action="store_true",
        help="never swap out the programs that keep the network up, nor engines on this machine (for remote=)",
    )
    option(
        "--timeout-seconds",
        type=int,
        default=DEFAULTS.timeout_seconds,
        help="until an unanswered request is sent again on a new connection (%(default)s)",
    )
    option(
        "--dead-server-seconds",
        type=int,
        default=DEFAULTS.dead_connection_seconds,
        help="how long requests wait for a new server when theirs has died (%(default)s)",
    )
    option(
        "--start-seconds",
        type=float,
        default=DEFAULTS.start_seconds,
        help="for its start; half of it, or 60, for a step that shows no progress (%(default)s)",
    )
    option("--keep-backing", action="store_true", help="swap-down keeps the backing file that swap-up has made")
    option("--state-folder", type=Path, default=DEFAULTS.folder, help="one for each swap area (%(default)s)")
    chosen = parser.parse_intermixed_args(arguments)
    return Options(
        parameters=tuple(map(_with_absolute_path, chosen.parameters)),
        priority=chosen.priority,
        discard=chosen.discard,
        may_hibernate=chosen.hibernate,
        network_in_ram=chosen.network_in_ram,
        timeout_seconds=chosen.timeout_seconds,
        dead_connection_seconds=chosen.dead_server_seconds,
        start_seconds=chosen.start_seconds,
        keep_backing=chosen.keep_backing,
        # Absolute, for the server starts in /; and by one name only, which is that of processes'
        # arguments.
        folder=chosen.state_folder.resolve(),
    )


#: Of an engine's URL, what names files.
_FILES_OF_URL: Final = ("password_file", "ca", "cert", "key")


def _with_absolute_path(parameter: str) -> str:
    """The server starts in /, and the caller means a place seen from where he is."""
    key, _, value = parameter.partition("=")
    if key == "backing" and value:
        return f"backing={Path(value).absolute()}"
    if key == "clean" and value.partition(":")[2]:
        name, _, path = value.partition(":")
        return f"clean={name}:{Path(path).absolute()}"
    if key == "remote":
        url, mark, query = value.partition("?")
        return f"remote={url}{mark}{'&'.join(map(_with_absolute_file, query.split('&')))}"
    return parameter


def _with_absolute_file(option: str) -> str:
    """Of a URL, percent-encoded; what is no file is left alone, for the server to look at."""
    key, _, value = option.partition("=")
    if key not in _FILES_OF_URL or not value or unquote(value).startswith("/"):
        return option
    return f"{key}={quote(os.fsencode(Path.cwd()))}/{value}"


def tell(line: str) -> None:
    standard_streams.say(f"swap-up: {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 the swap is on, 1 it is not and a line says why, 2 wrong usage, 128+n a
    signal."""
    options = parse(arguments)
    try:
        with Interruption() as interruption:
            run(options, tell, interruption.held)
    except (SwapError, OSError) as error:
        print(f"swap-up: error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        is_on = StateFolder(options.folder).state.exists()
        outcome = "too late: the swap is on (swap-down ends it)" if is_on else "undone, nothing is left"
        print(f"swap-up: {interrupted}: {outcome}", file=sys.stderr)
        return interrupted.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(start.run("swap-up", main))
