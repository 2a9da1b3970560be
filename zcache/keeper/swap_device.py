"""The device that the kernel swaps to, as far as its keeper knows: what swap-up has handed over in
the state folder, whether the keeper is armed, and whether anybody needs it still."""

from pathlib import Path

from zcache.keeper import voice
from zcache.keeper.reconnection import Reconnection
from zcache.keeper.state import StateFolder
from zcache.linux.proc_swaps import ProcSwaps


class SwapDevice:
    """Of one keeper. Files of the state folder are not read once the swap is on: they lie in a
    tmpfs, and may be swapped out."""

    def __init__(self, folder: StateFolder, socket: Path) -> None:
        """`socket` is where servers listen, under a name that stays."""
        self._folder = folder
        self._socket = socket
        self.swaps = ProcSwaps()
        self.name: str | None = None
        self.reconnection: Reconnection | None = None  # once swap-up has left it
        self.is_armed = False  # and swap-up knows it
        self.has_been_swapped_to = False

    def prepare(self) -> None:
        """Take what swap-up leaves; it turns the swap on when we are armed."""
        if self.reconnection is None and self._folder.reconnection.exists():
            state = self._folder.load()
            self.name = state.device if state else None
            self.reconnection = Reconnection(self._folder.reconnection.read_bytes(), self._socket)

    def arm(self) -> None:
        """There is a standby, and all of the image is kept: swap-up may turn the swap on."""
        self._folder.armed.touch()
        self.is_armed = True

    def is_swapping(self) -> bool:
        """Whether the kernel swaps to it now."""
        return bool(self.name and self.swaps.find(self.name))

    def is_armed_still(self) -> bool:
        """swap-down takes the message away before it detaches the device; a folder that somebody
        has removed with the swap on says nothing."""
        return bool(self.reconnection and (self.is_swapping() or self._folder.reconnection.exists()))

    def is_needed(self) -> bool:
        """Whether the kernel swaps to the device, or swap-up is about to have it do so: it has
        armed us. Said, if so."""
        if not self.is_armed_still():
            return False
        voice.say(f"not ending: the kernel swaps to {self.name}, or will; take that off first (swap-down)")
        return True
