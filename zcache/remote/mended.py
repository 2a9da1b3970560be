"""What is mended (`zcache.remote.mender`): a tier with copies of its frames at engines."""

from collections.abc import Callable
from typing import Protocol

from zcache.remote.copies import Copies


class Mended(Protocol):
    """Such a tier, as the mender sees it."""

    copies: Copies
    wanted_copies: int  # of each frame that is there
    limit_slots: int  # frames for which room was promised

    def is_used(self, slot: int) -> bool:
        """Whether a frame is there."""

    def missing_copies(self) -> int:
        """How many there are not, or may be lost, as far as nothing is under way."""

    def promised_room(self) -> int:
        """How many frames there would be room for, by what engines said last: if those were there
        that are out of reach, whose trouble is another."""

    def spare_work(self, go_on: Callable[[], bool]) -> None:
        """What else is due in each turn, for as long as `go_on` says."""
