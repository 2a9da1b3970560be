"""Signals that end a command which has guests to kill and files to remove."""

import signal
from typing import NoReturn


def end_in_order() -> None:
    """SIGTERM, and SIGHUP unless our caller has it ignored (nohup), unwind as Ctrl-C does, to exit
    status 128 + n."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)
