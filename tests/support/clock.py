"""Time that passes when somebody waits for it, and never by itself."""

import threading

from zcache.clock import Clock


class FakeClock(Clock):
    """Starts at 1000 s; `waits` is what was waited for, in order."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        if seconds:
            self.waits.append(seconds)
            self.seconds += max(seconds, 1e-6)  # whatever is added, time passes: 1024 + 1e-13 is 1024

    def wait(self, condition: threading.Condition, seconds: float) -> None:  # noqa: ARG002 (nobody notifies)
        self.sleep(seconds)
