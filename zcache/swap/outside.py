"""What keeps a swap safe and is set outside its processes, where others may change it: looked at again by who asks for
the status. (The keeper looks, too, and puts back what it can.)"""

from pathlib import Path
from typing import Final

from zcache.swap import cgroup, process, sysctls
from zcache.swap.error import SwapError
from zcache.swap.state import StateFolder

_PROC: Final = Path("/proc")


def troubles(folder: StateFolder, server_pid: int, root: Path = cgroup.ROOT, proc: Path = _PROC) -> list[str]:
    """What is not as swap-up left it, a line each; none for a server that is not swap-up's."""
    try:
        state = folder.load()
    except (SwapError, OSError):
        return []
    if state is None or not process.is_running(state.keeper, proc):
        return []
    found = sysctls.changed(folder.state)
    if not (root / "cgroup.controllers").exists():  # the server said at its start that there is no such group
        return found
    return found + [
        f"the control group of the {name} (pid {pid}) does not say {cgroup.LIMIT}=0: what starts there when memory is "
        f"short may be swapped out, to itself; the keeper puts it back if it can ({folder.log} says why it cannot)"
        for name, pid in (("keeper", state.keeper.pid), ("server", server_pid))
        if not cgroup.is_swapless(root, proc / str(pid) / "cgroup")
    ]
