"""What keeps a swap safe and is set outside its processes, where others may change it: looked at
again by who asks for the status. (The keeper looks, too, and puts back what it can.)"""

from pathlib import Path
from typing import Final

from zcache.errors import SwapError
from zcache.keeper.state import StateFolder
from zcache.linux import cgroup, process
from zcache.swap import sysctls

#: In what the keeper says at its start when it could not enter a group with a limit
#: (keeper/__main__.py).
NO_LIMIT: Final = "WARNING: a server that starts when memory is short may be swapped out, to itself: "
_PROC: Final = Path("/proc")


def troubles(
    folder: StateFolder, server_pid: int, root: Path = cgroup.ROOT, proc: Path = _PROC, *, is_exempt: bool = False
) -> list[str]:
    """What is not as swap-up left it, a line each; none for a server that is not swap-up's.
    `is_exempt`: the server could have itself spared by the OOM killer at its start."""
    try:
        state = folder.load()
    except (SwapError, OSError):
        return []
    if state is None or not process.is_running(state.keeper, proc):
        return []
    found = sysctls.changed(folder.state)
    if is_exempt:
        found += [line for pid in (state.keeper.pid, server_pid) if (line := _of_score(pid, proc))]
    exposed = [
        f"{name} (pid {pid})"
        for name, pid in (("keeper", state.keeper.pid), ("server", server_pid))
        if not cgroup.is_swapless(root, proc / str(pid) / "cgroup")
    ]
    if not exposed or not (root / "cgroup.controllers").exists() or _had_no_limit(folder):
        return found
    return [
        *found,
        f"the control group of the {' and the '.join(exposed)} has lost {cgroup.LIMIT}=0: a server that starts now may "
        "be swapped out to the swap that it is to serve, and hang. The keeper sets it again within a second. If this "
        f"line stays, it could not ({folder.log} says why), or is of an older version: run swap-down, then swap-up",
    ]


def _of_score(pid: int, proc: Path) -> str:
    try:
        score = (proc / str(pid) / "oom_score_adj").read_text().strip()
    except OSError:  # it has just ended
        return ""
    if score == "-1000":
        return ""
    return (
        f"the OOM score of process {pid} is {score}, and has to be -1000 while the swap is on. The keeper sets it "
        f"again within a second. If this line stays: echo -1000 > /proc/{pid}/oom_score_adj"
    )


def _had_no_limit(folder: StateFolder) -> bool:
    """Whether the keeper could have none at its start (no cgroup v2, a container where it is
    read-only). It said so then, in words that all versions have used, and there is nothing to put
    back."""
    try:
        return NO_LIMIT in folder.log.read_text(errors="replace")
    except OSError:
        return False
