"""Accounts: what stands at an engine beside frames, for people to see whose they are.

Keys, of which each machine's account may touch its own alone (an ACL):

    zcache:OWNER:NAME:SLOT:GENERATION      a frame; in a Cluster there is {TAG}: before SLOT
    zcache:OWNER:NAME:word                 what tells one life of the engine's memory from another
    zcache:OWNER:NAME:account              a hash: who it is, and how much it has
    zcache:quota:OWNER                     written by the operator: bytes that the owner may have

OWNER is the user that the URL names; NAME is made from the image's secret, so it stays the same
when the server is replaced, and a machine that is started anew has another.
"""

import hashlib
import re
import time
from typing import TYPE_CHECKING, Final

from zcache import __version__

if TYPE_CHECKING:
    from zcache.remote.copies import Copies
    from zcache.remote.peer import Peer

#: All keys begin with it.
ROOT: Final = b"zcache:"
_NAME_DIGITS: Final = 12
#: How owners and names look.
OWNER: Final = re.compile(r"[\w.@+-]+", re.ASCII)
NAME: Final = re.compile(rf"[0-9a-f]{{{_NAME_DIGITS}}}")


def name_of(secret: bytes) -> str:
    """A swap's name at its engines; nothing of the secret can be found from it."""
    return hashlib.blake2b(secret, digest_size=16, person=b"zcache remote").hexdigest()[:_NAME_DIGITS]


def prefix_of(owner: str, name: str, tag: bytes = b"") -> bytes:
    """With which all keys of a lane begin."""
    return ROOT + owner.encode() + b":" + name.encode() + b":" + (b"{" + tag + b"}:" if tag else b"")


def quota_key(owner: str) -> bytes:
    """Where an operator says how much an owner may have at an engine, or in a Cluster."""
    return ROOT + b"quota:" + owner.encode()


def account_of(host: str, copies: "Copies", peer: "Peer") -> tuple[str | int, ...]:
    """Fields and values, for HSET."""
    frames = copies.at[peer.lane]
    fields: dict[str, str | int] = {
        "host": host,
        "version": __version__,
        "seen": int(time.time()),
        "frames": frames,
        "bytes": frames * copies.paid_bytes,
        "limit_bytes": -1 if peer.limit_bytes is None else peer.limit_bytes,
    }
    return tuple(word for field in fields.items() for word in field)
