"""Checks: whether an engine may hold our frames, by what it says of itself.

Asked at the start, where the answer is a refusal or a warning, and again at each new greeting,
where it is a reason to leave that peer alone. The policy is asked at each heartbeat, too. An
engine that may throw our frames out, or is about to copy all of its memory for a snapshot, does
neither here and now; so this is asked, not waited for. What an account is not allowed to ask
(CONFIG) is not known, and said to be so.
"""

from typing import Final, NamedTuple

from zcache.remote.accounts import prefix_of
from zcache.remote.peer import fields_of, number_of
from zcache.remote.readers import Connected
from zcache.remote.resp import Refused

#: The oldest that is known to work.
LEAST_VERSION: Final = 7
#: Settings that are asked for, where that is allowed.
_SETTINGS: Final = ("save", "cluster-require-full-coverage", "cluster-allow-reads-when-down")


class Said(NamedTuple):
    """What an engine says of itself: INFO, and the settings that could be asked for."""

    info: dict[str, str]
    settings: dict[str, str]

    @property
    def run_id(self) -> str:
        """Of its process."""
        return self.info.get("run_id", "")


def ask(connection: Connected, seconds: float) -> Said:
    """Raises `OSError`."""
    info = fields_of(connection.call("INFO", seconds=seconds))
    settings: dict[str, str] = {}
    for name in _SETTINGS:
        try:
            found = connection.call("CONFIG", "GET", name, seconds=seconds)
        except Refused:
            continue
        if isinstance(found, list) and len(found) == 2 and isinstance(found[1], bytes):
            settings[name] = found[1].decode("ascii", "replace")
    return Said(info, settings)


def try_rights(connection: Connected, owner: str, seconds: float) -> None:
    """Do once what an account must be allowed to do; raises `Refused` if it is not. Whatever else
    an engine answers now, it may not answer later."""
    key = prefix_of(owner, "check")
    for words in (("SET", key, "", "PX", 1000), ("GET", key), ("EXISTS", key), ("UNLINK", key), ("SCAN", 0)):
        try:
            connection.call(*words, seconds=seconds)
        except Refused as error:
            if error.word == "NOPERM":
                raise


def why_not(info: dict[str, str], is_cluster: bool, may_evict: bool) -> str:
    """Why it must not hold our frames, by what INFO says; "": it may. `may_evict`: what it throws
    out is somewhere else, too."""
    version = info.get("valkey_version") or info.get("redis_version", "")
    number = number_of(version.partition(".")[0])
    if number is None:
        return "does not say what it is; give the URL of a Redis or Valkey"
    if number < LEAST_VERSION:
        return f"version {version} is too old; give Redis or Valkey {LEAST_VERSION} or newer"
    if info.get("loading", "0") != "0":
        return "is still loading what it had stored; wait until it has"
    if not is_cluster and info.get("cluster_enabled", "0") != "0":
        return "is a node of a Cluster; give ?cluster=yes"
    if is_cluster and info.get("cluster_enabled", "0") == "0":
        return "is not a node of a Cluster; leave cluster=yes away"
    if not is_cluster and info.get("role") != "master":
        return f"is a read-only replica of {info.get('master_host', 'another')}; give its primary"
    return "" if may_evict else why_it_may_evict(info)


def why_it_may_evict(info: dict[str, str]) -> str:
    """Of what it says of its memory; "": it evicts nothing."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return ""
    return (
        f"may throw frames out (maxmemory-policy {policy}); "
        "set maxmemory-policy noeviction there, or give remote_copies=1 and a backing"
    )


def warnings(said: Said) -> list[str]:
    """What is no reason to leave it alone, and should be known: each in a few words."""
    info, settings = said.info, said.settings
    found = []
    if settings.get("save") or info.get("aof_enabled", "0") != "0":
        found.append(
            "writes what it holds to its disk, and may need twice the memory for that; "
            "set save '' and appendonly no there"
        )
    if info.get("maxmemory", "0") == "0":
        found.append("has no maxmemory, and may take all memory of its machine; set one there")
    return found


def cluster_warnings(said: Said, has_replicas: bool) -> list[str]:
    """What should be known of a Cluster as a whole, by one node's settings: each in a few words."""
    found = []
    if said.settings.get("cluster-require-full-coverage", "yes") != "no":
        known = "" if "cluster-require-full-coverage" in said.settings else " (the default; it may not be asked)"
        found.append(
            f"refuses everything when one primary is gone: cluster-require-full-coverage yes{known}; set no there"
        )
    if not has_replicas:
        found.append("has a primary without a replica: when it is gone, its frames are one copy until it is back")
    return found
