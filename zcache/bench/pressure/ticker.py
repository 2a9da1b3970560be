"""A program that wants to do next to nothing, 100 times a second: how long was it kept from that?

Runs until SIGTERM; then prints the longest time, in seconds, by which it woke too late. That counts
the scheduler of a busy machine as well as memory: what somebody at the keyboard would feel.
"""

import signal
import time

PERIOD_SECONDS = 0.01


def main() -> None:
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    longest = 0.0
    last = time.monotonic()
    while not ended:
        time.sleep(PERIOD_SECONDS)
        now = time.monotonic()
        longest = max(longest, now - last - PERIOD_SECONDS)
        last = now
    print(round(longest, 3))


if __name__ == "__main__":
    main()
