"""Settings: what can be changed while the server runs (`zcache set KEY=VALUE`), and how.

A change holds for the servers that come after this one, too, until the swap is taken off: it is
kept in the image's header (`signs.SETTINGS`), where there is one.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from zcache.budget.budget import Budget
from zcache.errors import BadInput
from zcache.image.signs import Signs
from zcache.linux.group_limits import Room
from zcache.parameters import LIVE_KEYS
from zcache.reclaim.spare_time import SHARE
from zcache.sizes import parse_budget, parse_share, parse_size
from zcache.store.admission import ADMIT
from zcache.store.store import Store

#: Parts of a share, as it is kept in a word.
_SHARE_PARTS: Final = 1_000_000


class Settings:
    """Of one server. `signs` keeps them, if there is an image; `rooms` is what control groups
    leave, now, beside what they must keep."""

    def __init__(
        self, store: Store, budget: Budget, signs: Signs | None, rooms: Callable[[], Iterable[Room]] = tuple
    ) -> None:
        self._store = store
        self.budget = budget
        self._signs = signs
        self._rooms = rooms
        self._setters: dict[str, Callable[[str], None]] = {
            "budget": self._set_budget,
            "low_watermark": lambda text: self._set_watermark("low_watermark", text),
            "high_watermark": lambda text: self._set_watermark("high_watermark", text),
            "recompress_share": self._set_share,
            "admit": self._set_admit,
        }

    def set(self, word: str) -> dict[str, Any]:
        """`KEY=VALUE`; what all settings are then. Raises `BadInput`, and has changed nothing."""
        key, equals, value = word.partition("=")
        if not equals or key not in self._setters:
            raise BadInput(f"{word}: no such setting; give {', '.join(f'{name}=' for name in LIVE_KEYS)}")
        self._setters[key](value)
        return self.get()

    def get(self) -> dict[str, Any]:
        """All of them; sizes in bytes."""
        frame_bytes, reclaimer = self._store.frames.frame_bytes, self._store.reclaimer
        return {
            "budget_min_bytes": self.budget.min_frames * frame_bytes,
            "budget_max_bytes": self.budget.max_frames * frame_bytes,
            "low_watermark_bytes": reclaimer.low_watermark * frame_bytes,
            "high_watermark_bytes": reclaimer.high_watermark * frame_bytes,
            "recompress_share": reclaimer.spare_time.share,
            "admit": self._store.admission.admit,
        }

    def take_over(self) -> None:
        """Go on with what a predecessor was told."""
        kept = self._signs.setting if self._signs else lambda _name: 0
        budget, reclaimer = self.budget, self._store.reclaimer
        most = self._store.frames.max_budget_frames
        budget.min_frames = min(kept("min_budget_frames"), most) or budget.min_frames
        budget.max_frames = min(kept("max_budget_frames"), most) or budget.max_frames
        budget.max_frames = max(budget.min_frames, budget.max_frames)  # a death between the two words
        if kept("high_watermark"):
            reclaimer.chosen_watermarks = kept("low_watermark"), kept("high_watermark")
        reclaimer.spare_time.share = kept("share") / _SHARE_PARTS or SHARE
        if kept("admit"):
            self._store.admission.admit = ADMIT[kept("admit") - 1]

    def _keep(self, name: str, value: int) -> None:
        if self._signs:
            self._signs.set(name, value)

    def _set_budget(self, text: str) -> None:
        budget, frame_bytes = self.budget, self._store.frames.frame_bytes
        rooms = tuple(self._rooms())
        least, most = (bound // frame_bytes for bound in parse_budget(text, LIVE_KEYS["budget"], rooms))
        possible = self._store.frames.max_budget_frames
        if most > possible:
            raise BadInput(
                f"budget={text}: more than the server was started with, or can use; "
                f"give at most {possible * frame_bytes >> 10}K"
            )
        if least < budget.least_frames:
            raise BadInput(
                f"budget={text}: less than what size= was promised needs; "
                f"give at least {budget.least_frames * frame_bytes >> 10}K"
            )
        more_bytes = (least - self._store.frames.budget_frames) * frame_bytes
        for room in rooms:
            if more_bytes > room.available:
                raise BadInput(
                    f"budget={text}: {more_bytes >> 20} MiB more, and {room.in_words()}, and leaves "
                    f"{room.available >> 20}; give less, or raise it"
                )
        budget.min_frames, budget.max_frames = least, most
        self._keep("min_budget_frames", least)
        self._keep("max_budget_frames", most)

    def _set_watermark(self, name: str, text: str) -> None:
        reclaimer, frames = self._store.reclaimer, self._store.frames
        if text == "auto":
            reclaimer.chosen_watermarks = None
        else:
            value = max(parse_size(name, text, LIVE_KEYS[name]) // frames.frame_bytes, 1)
            low, high = reclaimer.low_watermark, reclaimer.high_watermark
            low, high = (value, max(high, value + 1)) if name == "low_watermark" else (min(low, value - 1), value)
            if not 0 < low < high <= frames.max_budget_frames // 2:
                size_kib = frames.frame_bytes >> 10
                raise BadInput(
                    f"{name}={text}: low is {size_kib}K or more, high {2 * size_kib}K or more, both at most half of "
                    "the largest budget; give a size between these, or auto"
                )
            reclaimer.chosen_watermarks = low, high
        reclaimer.set_watermarks(frames.budget_frames)
        low, high = reclaimer.chosen_watermarks or (0, 0)
        self._keep("low_watermark", low)
        self._keep("high_watermark", high)

    def _set_share(self, text: str) -> None:
        share = parse_share(text)
        if share is None or not 0 < share <= 1:
            raise BadInput(
                f"recompress_share={text}: not a share of a processor; give a percentage, more than 0% and up to 100%"
            )
        self._store.reclaimer.spare_time.share = share
        self._keep("share", max(round(share * _SHARE_PARTS), 1))

    def _set_admit(self, text: str) -> None:
        if text not in ADMIT:
            raise BadInput(f"admit={text}: no such choice; give {' or '.join(ADMIT)}")
        self._store.admission.admit = text
        self._keep("admit", ADMIT.index(text) + 1)
