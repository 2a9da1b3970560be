"""Backoff: when something that fails is tried again, and how long others may wait for that.

One policy for writes and for reads. The first failure begins a *trouble*; the first success ends
it. While it lasts, tries are spaced: each rest is twice as long as the last one, up to
`LAST_REST_SECONDS`. So a disk that has healed is noticed after that rest and one try at the latest,
and one that is dead is asked once in two seconds. Whoever cannot go on without it waits while the
trouble is young (`PATIENCE_SECONDS`), and for a try that began then: most are over by then. After
that, waiting has shown itself to be useless, and it is told of the failure at once, until a try
succeeds.

It holds no lock: its owner says which one protects it. Time comes from a `Clock`, so that tests
need not wait.
"""

from typing import Final

from zcache.clock import Clock

#: Between the first failure and the next try: what a path failover or a link reset begins with.
FIRST_REST_SECONDS: Final = 0.05
#: The longest rest. Each try on a dead disk costs one request and a line or two in the kernel log.
LAST_REST_SECONDS: Final = 2.0
#: Tries come 0.05, 0.15, 0.35, 0.75 and 1.55 s after the first one, each later by what those before
#: it took; so nobody is told of a disk that was gone for a second and a half. (With 1.6 s the last
#: one came too late now and then: dm-flakey, one second in four, test VM.) A slow disk makes the
#: kernel's reclaim wait longer.
PATIENCE_SECONDS: Final = 2.0


class Backoff:
    """The trouble that one thing is in, if any."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = self._failed_at = 0.0  # the first time, and the last
        self._retry_at = 0.0
        self._try_began: float | None = None
        self.failures = 0  # in a row
        self.last_error = ""

    def failed(self, error: str) -> None:
        """A try failed."""
        now = self._clock.now()
        if not self.failures:
            self._began = now
        self.failures += 1
        self._failed_at = now
        self.last_error = error
        self._try_began = None
        self._retry_at = now + self._rest()

    def succeeded(self) -> None:
        """A try succeeded: the trouble is over."""
        self.failures = 0
        self._try_began = None

    def forget(self) -> None:
        """There is nothing left to try with: whether the trouble lasts cannot be known, and the
        next failure begins another."""
        self.succeeded()

    def begin_try(self) -> bool:
        """Whether to try now. In a trouble, who is told so is alone in it until they say how it
        ended, or a rest has passed."""
        if self.failures:
            now = self._clock.now()
            if now < self._retry_at:
                return False
            self._retry_at = now + self._rest()
            self._try_began = now
        return True

    def rest_seconds(self) -> float:
        """Until the next try; 0: now."""
        return max(self._retry_at - self._clock.now(), 0.0) if self.failures else 0.0

    def patience_seconds(self) -> float:
        """How much longer to wait for the end of the trouble; 0: fail at once. A try that began in
        time is waited for."""
        left = max(PATIENCE_SECONDS - self.trouble_seconds(), 0.0)
        if self._try_began is not None and self._try_began - self._began < PATIENCE_SECONDS:
            return max(left, FIRST_REST_SECONDS)
        return left

    def trouble_seconds(self) -> float:
        """How long it has lasted; 0: there is none."""
        return self._clock.now() - self._began if self.failures else 0.0

    def seen_seconds(self) -> float:
        """How long it has been seen to last, from the first failure to the last one."""
        return self._failed_at - self._began if self.failures else 0.0

    def _rest(self) -> float:
        return min(FIRST_REST_SECONDS * 2.0 ** min(self.failures - 1, 16), LAST_REST_SECONDS)
