"""Numbers on the command lines of tests and benchmarks."""

import argparse
import re
from collections.abc import Callable


def whole_number(least: int = 1) -> Callable[[str], int]:
    """For argparse's `type`: what is not one, or is less, is refused in a line."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text, re.ASCII) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, {least} or more")
        return int(text)

    return parse
