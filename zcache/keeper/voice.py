"""What the keeper says, in lines: to its stderr, which is a pipe that does not block by then."""

from zcache.hardening import log_pipe


def say(line: str) -> None:
    log_pipe.say(f"zcache keeper: {line}")


class Complaints:
    """What has been said since things went well. What fails is tried again ten times a second, and
    said once."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: set[str] = set()

    def complain(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            say(line)

    def forget(self) -> None:
        """Things have gone well: whatever fails from now on is said again."""
        self._said.clear()
