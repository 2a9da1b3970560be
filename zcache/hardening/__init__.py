"""Process safety: what lets a server that Linux swaps to be swapped to by itself as well. Knows
nothing of pages.

The danger is a circle: the kernel needs the server to free memory, and the server needs memory to
serve. Each protection breaks it at one place; `protections.py` has them in the order in which they
are applied.
"""

from zcache.hardening.protections import Hardening
from zcache.hardening.threads import keep_thread

__all__ = ["Hardening", "keep_thread"]
