"""Breathing: the budget follows what the machine needs, twice a second.

It *grows* while pages are swapped out to a store that is full, as long as memory can be had: a
frame more holds several pages, so each that is taken frees more than itself. It grows for clean
data, too, when there is plenty. It *shrinks* when this machine is short of memory for reasons of
its own, other than that it swaps to us: then the oldest frames are written below; and when the
store is at rest and much of it is free. (The original's shrinker, and its "selfshrinking" by a
share of what is left, after some rounds without growth: `frontswap_hysteresis` and
`frontswap_inertia` in drivers/staging/zcache/ramster.)

Against swinging to and fro: what it takes to grow (an eighth is ready, or less) and what is left by
shrinking (a quarter) are apart, and so are the memory that must be there to grow and that below
which the machine is short; steps are shares of what is there; and it turns round only after
`HOLD_SECONDS`.

A control group's limit is another matter: at it, the kernel's OOM killer ends something in the
group at once, and the machine may have plenty. So the budget never grows into what a group must
keep (`reserve_bytes`), whatever is swapped out, and gives way when a quarter of that is gone.
Limits are looked at anew each time.

Every decision that changes something is remembered, with its reason, for the status.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from zcache.budget.budget import Budget
from zcache.budget.pressure import Pressure, PressureGauge
from zcache.clock import Clock
from zcache.linux import meminfo
from zcache.linux.kernel_page import KERNEL_PAGE_BYTES
from zcache.pages.entry import PAGE_BYTES
from zcache.store.store import Store
from zcache.tiers.health import describe

BREATH_SECONDS: Final = 0.5
#: Between two lines about limits that others change.
REPORT_SECONDS: Final = 60.0
#: After a change one way, before the first the other way.
HOLD_SECONDS: Final = 5.0
#: Without more than a few requests, before a store is at rest: the original's inertia was three
#: rounds.
REST_SECONDS: Final = 3.0
#: A store is as good as at rest while no more than this share of its budget, in pages, is asked for
#: in a breath.
QUIET_SHARE: Final = 1 / 1000

#: It is full when frames had to be written below, or less than this share of it is ready; at rest,
#: this much is left.
NEARLY_FULL: Final = 1 / 8
LEFT_AT_REST: Final = 1 / 4
#: How much at a time: of the budget to grow; of what is too much, to shrink; of the budget, when
#: the machine is short.
GROWTH: Final = 1 / 2
SHARE_OF_SURPLUS: Final = 1 / 2
SHRINKAGE: Final = 1 / 8

#: The machine is short when tasks stand still for this share of the time, or less than that of its
#: RAM can be had.
SHORT_STALLED_SHARE: Final = 0.1
SHORT_AVAILABLE_SHARE: Final = 1 / 64
#: It takes half of what can be had beyond twice as much. For clean data, which nobody depends on,
#: there must be a quarter of all RAM. While pages are swapped out it always grows by a little,
#: unless there is next to nothing: what it takes then, the kernel makes by swapping out several
#: times as much.
GROWTH_AVAILABLE_SHARE: Final = 1 / 32
PLENTY_AVAILABLE_SHARE: Final = 1 / 4
LEAST_AVAILABLE_SHARE: Final = 1 / 128
LEAST_GROWTH: Final = 1 / 8
#: Less than this share of what a control group must keep, and the budget gives way.
TIGHT: Final = 3 / 4

REMEMBERED: Final = 32


class _Seen(NamedTuple):
    """Counters at a look."""

    requests: int  # pages put and got
    swap_requests: int  # of these, not of clean data
    puts: int  # of those
    written: int  # frames, below
    eaten: int  # frames that ephemeral puts ate
    swapped: int  # device pages, by this machine, out to whatever swap and back in


class Decision(NamedTuple):
    """What was done, when (`time.time`), and why."""

    seconds: float
    before_bytes: int
    after_bytes: int
    why: str


class Breathing:
    """Moves `budget` when `breathe` is called; by one thread, which may have to wait for memory."""

    def __init__(
        self,
        store: Store,
        budget: Budget,
        gauge: PressureGauge,
        clock: Clock,
        vmstat: Path = meminfo.VMSTAT,
        page_bytes: int = KERNEL_PAGE_BYTES,
        reserve_bytes: int = 0,
        report: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """`reserve_bytes` is what each control group must have left; `report` is told of limits, in
        a line each."""
        self._store = store
        self.budget = budget
        self.gauge = gauge
        self._clock = clock
        self._vmstat = vmstat
        self._page_bytes = page_bytes
        self._reserve_bytes = reserve_bytes
        self._report = report
        self._reported: list[tuple[str, int]] = []  # the limits, as they were said last
        self._next_report_seconds = 0.0
        self._seen = self.look()
        self._rested = False  # since the last look
        self._busy_seconds = self._swapping_seconds = clock.now()  # when there were requests, or swapping to us, last
        self._grew_seconds = self._shrank_seconds = clock.now() - HOLD_SECONDS
        self.pressure = gauge.look()
        self.decisions: deque[Decision] = deque(maxlen=REMEMBERED)
        self.trouble = ""  # why the last change could not be made

    def breathe(self) -> None:
        """Look, decide, and do it. A budget that is fixed costs nothing; when it is not any more,
        the first look is only that."""
        if self.budget.is_settled():
            self._rested = True
            return
        try:
            self._breathe()
        except Exception as error:  # whatever it is, the next breath may be better
            self.trouble = f"the budget does not move: {describe(error)}"

    def _breathe(self) -> None:
        self.report_limit()
        before, self._seen = self._seen, self.look()
        if self._rested:
            self._rested, before = False, self._seen
        change, may_write, why = self._decide(self.pressure, before, self._seen)
        frames, frame_bytes = self._store.frames, self._store.frames.frame_bytes
        size = frames.budget_frames
        try:
            self.budget.sweep()
            if change > 0:
                self.budget.grow(change)
                self._grew_seconds = self._clock.now()
            elif change < 0:
                self.budget.shrink(-change, may_write)
                self._shrank_seconds = self._clock.now()
            self.trouble = self._stuck() if frames.budget_frames == size else ""
        except OSError as error:
            self.trouble = f"the budget cannot be changed: {error.strerror}"
        if frames.budget_frames != size:
            sizes = size * frame_bytes, frames.budget_frames * frame_bytes
            self.decisions.append(Decision(time.time(), *sizes, why))

    def _stuck(self) -> str:
        """Why a budget that has not moved is not what was set; "" if it is."""
        size, budget = self._store.frames.budget_frames, self.budget
        if size > budget.max_frames:
            return "the budget cannot shrink as was set: nothing gives way, or can be written"
        tightest = self.pressure.tightest()
        if size < budget.min_frames and tightest:
            return f"the budget cannot grow as was set: {tightest.in_words()}, and leaves too little"
        return ""

    def look(self) -> _Seen:
        statistics = self._store.statistics
        with self._store.lock:
            written = statistics.reclaim_background + statistics.reclaim_sync
            requests, puts = statistics.puts + statistics.gets, statistics.puts - statistics.ephemeral_puts
            swap_requests = requests - statistics.ephemeral_puts - statistics.ephemeral_gets
            seen = (requests, swap_requests, puts, written, statistics.eph_ate_tail)
        swapped = sum(meminfo.read_counter(name, self._vmstat) for name in ("pswpout", "pswpin"))
        return _Seen(*seen, swapped * self._page_bytes // PAGE_BYTES)

    def _decide(self, pressure: Pressure, before: _Seen, now: _Seen) -> tuple[int, bool, str]:
        """By how many frames the budget is to change, whether frames may be written below for that,
        and why."""
        budget, frames = self.budget, self._store.frames
        size, clock = frames.budget_frames, self._clock
        room = self._room_in_groups(pressure)
        if size < budget.min_frames:
            return max(min(budget.min_frames - size, room), 0), False, "it was set to be more"
        if size > budget.max_frames:
            return budget.max_frames - size, True, "it was set to be less"
        if size > budget.min_frames and pressure.is_tight(int(self._reserve_bytes * TIGHT)):
            tightest = pressure.tightest()
            assert tightest
            return -min(max(-room, 1), size - budget.min_frames), True, f"{tightest.in_words()}, and nearly reached"
        if now.requests - before.requests > size * frames.frame_bytes // PAGE_BYTES * QUIET_SHARE:
            self._busy_seconds = clock.now()
        with self._store.lock:
            free, giving_way = budget.idle_frames()
        may_grow = size < budget.max_frames and clock.now() - self._shrank_seconds >= HOLD_SECONDS
        may_shrink = size > budget.min_frames and clock.now() - self._grew_seconds >= HOLD_SECONDS
        if may_grow:
            growth, why = self._growth(pressure, before, now, free + giving_way)
            growth = min(growth, room)
            if growth > 0:
                return growth, False, why
        swapped = now.swapped - before.swapped
        if swapped and 2 * (now.swap_requests - before.swap_requests) >= swapped:
            self._swapping_seconds = clock.now()
        swaps_to_us = clock.now() - self._swapping_seconds < HOLD_SECONDS
        shortage = _shortage(pressure)
        if may_shrink and shortage and not swaps_to_us:
            return -max(int(size * SHRINKAGE), 1), True, f"{shortage}, and not for swapping to us"
        if may_shrink and not swaps_to_us and clock.now() - self._busy_seconds >= REST_SECONDS:
            surplus = int(free - size * LEFT_AT_REST)
            if surplus > size // 16:
                return -max(int(surplus * SHARE_OF_SURPLUS), 1), False, "at rest, with much of it free"
        return 0, False, ""

    def _growth(self, pressure: Pressure, before: _Seen, now: _Seen, ready: int) -> tuple[int, str]:
        """By how many frames, and why; 0: it does not grow."""
        frames = self._store.frames
        size, frame_bytes = frames.budget_frames, frames.frame_bytes
        spare_bytes = pressure.beyond(GROWTH_AVAILABLE_SHARE)
        growth = min(int(size * GROWTH) or 1, max(spare_bytes, 0) // 2 // frame_bytes)
        is_full = now.written > before.written or ready < size * NEARLY_FULL
        if now.puts > before.puts and is_full:
            if pressure.beyond(LEAST_AVAILABLE_SHARE) > 0:
                growth = max(growth, int(size * LEAST_GROWTH), 1)
            return growth, "pages are swapped out to a full store, and memory can be had"
        is_plenty = pressure.beyond(PLENTY_AVAILABLE_SHARE) > 0
        if now.eaten > before.eaten and is_plenty and not _shortage(pressure):
            return growth, "clean data is read that has no room, and there is plenty of memory"
        return 0, ""

    def _room_in_groups(self, pressure: Pressure) -> int:
        """How many frames more the control groups leave room for; fewer than none, if their reserve
        is used."""
        frames, tightest = self._store.frames, pressure.tightest()
        if tightest is None:
            return frames.max_budget_frames
        return (tightest.available - self._reserve_bytes) // frames.frame_bytes

    def report_limit(self) -> None:
        """Look how short memory is, and say what limits the groups set, if any do: at the start,
        and when that has changed."""
        self.pressure = self.gauge.look()
        limits = [(room.name, room.limit) for room in self.pressure.groups]
        if limits == self._reported or self._clock.now() < self._next_report_seconds:
            return
        self._reported, self._next_report_seconds = limits, self._clock.now() + REPORT_SECONDS
        tightest = self.pressure.tightest()
        if not tightest:
            self._report("no control group limits the budget any more")
            return
        frames, budget = self._store.frames, self.budget
        ceiling = frames.budget_frames + self._room_in_groups(self.pressure)
        ceiling_frames = max(min(ceiling, budget.max_frames), budget.min_frames)
        self._report(
            f"{tightest.in_words()}: the budget grows to {ceiling_frames * frames.frame_bytes >> 20} MiB there, as "
            f"things stand, of at most {budget.max_frames * frames.frame_bytes >> 20}"
        )

    def status(self) -> dict[str, Any]:
        """Where it is, between which bounds, and the last decisions, the latest first."""
        frame_bytes = self._store.frames.frame_bytes
        stalled = self.pressure.stalled_share
        return {
            "budget_min_bytes": self.budget.min_frames * frame_bytes,
            "budget_max_bytes": self.budget.max_frames * frame_bytes,
            "budget_decisions": [
                {
                    "seconds": round(decision.seconds, 3),
                    "before_bytes": decision.before_bytes,
                    "after_bytes": decision.after_bytes,
                    "why": decision.why,
                }
                for decision in reversed(list(self.decisions))  # which another thread adds to
            ],
            "stalled_share": None if stalled is None else round(stalled, 4),
            "available_bytes": self.pressure.beyond(0),
        }


def _shortage(pressure: Pressure) -> str:
    """How this machine is short of memory; "" if it is not."""
    if pressure.stalled_share is not None and pressure.stalled_share > SHORT_STALLED_SHARE:
        return f"this machine is short of memory (tasks stand still for {pressure.stalled_share:.0%} of the time)"
    if pressure.available_bytes < pressure.total_bytes * SHORT_AVAILABLE_SHARE:
        return f"this machine is short of memory ({pressure.available_bytes >> 20}M can be had)"
    return ""
