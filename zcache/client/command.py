"""The `zcache` command: what a running server says about itself; what is to be done before the
machine sleeps; who has how much at engines; the unit for systemd. The other words become programs
of their own (programs.py)."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any, Final, cast

from zcache import __version__
from zcache.client import programs, systemd_unit, tables
from zcache.control.answers import Audit, SettingsNow, Status
from zcache.control.ask import ask
from zcache.errors import BadInput, SwapError, ZcacheError
from zcache.inherited.start import run
from zcache.keeper.state import StateFolder
from zcache.linux.proc_swaps import ProcSwaps
from zcache.parameters import help_of_set
from zcache.swap import neighbours, outside

DESCRIPTION: Final = "Compressed swap in user space: turn it on and off, and ask a running server."

DEFAULT_CONTROL: Final = Path("/run/zcache/control")

MOMENTS: Final = (
    "pre: freeze whoever has pages in swap, and wait until all is quiet; post: thaw them, whatever came of it"
)


def command() -> int:
    """The `zcache` command: exit status 0; 1 when the books do not balance; 2 when there is no
    answer, or it cannot be printed. `zcache sleep`, and `zcache remote gc` and `quota`, are run for
    what they do, and have statuses of their own."""
    is_run_for_output = sys.argv[1:2] != ["sleep"] and sys.argv[1:3] not in (["remote", "gc"], ["remote", "quota"])
    return run("zcache", main, lost_output=2 if is_run_for_output else None, is_told=False)


def main() -> int:
    """The command, but for what becomes of its output."""
    programs.become(sys.argv[1:])
    if sys.argv[1:2] == ["remote"]:
        from zcache.client import remote  # late: the others need none of it

        return remote.main(sys.argv[2:])
    arguments = _parse()
    if arguments.command == "sleep":
        from zcache.swap import sleep  # late: the others need none of it

        return sleep.command(arguments.moment, arguments.hibernate)
    if arguments.command == "systemd-unit":
        return _print_unit(arguments.needrestart)
    return _ask_and_print(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="zcache", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"zcache {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, program in programs.PROGRAMS.items():
        commands.add_parser(name, help=program.text, add_help=False)
    text = "who has how much at the engines of remote=; what a dead machine left; quotas (zcache remote --help)"
    commands.add_parser("remote", help=text, add_help=False)
    for name, text in (
        ("status", "what it stores and how well"),
        ("check", "walk a copy of the store's books: do they balance?"),
        ("set", "change how it works, for as long as the swap is on"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--control", type=Path, default=DEFAULT_CONTROL, help="control socket (default: %(default)s)"
        )
        command.add_argument("--json", action="store_true", help="every figure, as JSON")
        if name == "set":
            command.add_argument("setting", metavar="KEY=VALUE", help=help_of_set())
    text = "around a suspend, while the swap is on (systemd runs it by itself)"
    command = commands.add_parser("sleep", help=text, description=text)
    command.add_argument("moment", choices=("pre", "post"), help=MOMENTS)
    command.add_argument("--hibernate", action="store_true", help="take the swap off; turn it on again (see swap-up)")
    text = "print what systemd needs to turn the swap on at boot; its first lines say where to put it"
    command = commands.add_parser("systemd-unit", help=text, description=text)
    command.add_argument("--needrestart", action="store_true", help="print what keeps needrestart from restarting it")
    return parser.parse_args()


def _print_unit(is_needrestart: bool) -> int:
    try:
        print(systemd_unit.needrestart() if is_needrestart else systemd_unit.unit(), end="")
    except BadInput as error:
        print(f"zcache: {error}", file=sys.stderr)
        return 2
    return 0


def _ask_and_print(arguments: argparse.Namespace) -> int:
    try:
        words = [arguments.command, *([arguments.setting] if arguments.command == "set" else [])]
        answer = ask(arguments.control, " ".join(words))
    except BadInput as error:
        print(f"zcache: {error}", file=sys.stderr)
        return 2
    except ZcacheError as error:
        print(f"zcache: {error}{_hint(arguments.control)}", file=sys.stderr)
        return 2
    if arguments.command == "status":
        is_exempt = answer.get("hardening", {}).get("oom_score", False)
        troubles = outside.troubles(StateFolder(arguments.control.parent), answer["pid"], is_exempt=is_exempt)
        answer |= {"state": "degraded", "reasons": [*answer["reasons"], *troubles]} if troubles else {}
        answer |= {**_neighbours(), "backing_goes_with_swap": _backing_goes(arguments.control)}
    if arguments.json:
        print(json.dumps(answer, indent=2))
    elif arguments.command == "status":
        tables.print_status(cast(Status, answer))
    elif arguments.command == "set":
        tables.print_settings(cast(SettingsNow, answer))
    else:
        tables.print_audit(cast(Audit, answer))
    return 0 if answer.get("balanced", True) else 1


def _neighbours() -> dict[str, Any]:
    """All swap of the machine, in the order in which the kernel fills it. Ours to find out, and not
    the server's, which serves requests meanwhile, and may not see it."""
    try:
        with contextlib.closing(ProcSwaps()) as swaps:
            areas = swaps.entries()
    except OSError:  # a kernel without swap, a container
        areas = []
    shown = [
        {
            "path": area.path,
            "type": area.kind,
            "size_bytes": area.size_kib << 10,
            "used_bytes": area.used_kib << 10,
            "priority": area.priority,
        }
        for area in neighbours.in_order(areas)
    ]
    return {"swap_areas": shown, "zswap": neighbours.is_zswap_on()}


def _backing_goes(control: Path) -> bool:
    """Whether swap-down will remove the backing, by what swap-up has left beside the control
    socket."""
    try:
        state = StateFolder(control.parent).load()
    except (SwapError, OSError):  # not swap-up's folder
        return False
    return bool(state and state.backing and state.backing.is_made and not state.backing.is_kept)


def _hint(control: Path) -> str:
    """What follows "no server answers"."""
    folder = StateFolder(control.parent)
    if _may_be_there(folder.state):
        return f"; a swap is on: if its server has ended, the keeper starts another ({folder.log} tells); ask again"
    return "" if _may_be_there(control) else "; swap-up turns a swap on, serve … control=PATH serves one"


def _may_be_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that only its owner may enter
        return True


if __name__ == "__main__":
    sys.exit(command())
