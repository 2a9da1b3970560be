"""nbdkit's script for a server that says where its time goes: the plugin, with clocks around its
callbacks and around what the page loop does with the codec.

What they show is in the file that `ZCACHE_TIMES` names, as it grows. A clock costs some 0.1 us, for
each request and for each run of pages. For one client, whose requests come one after the other:
with several, a codec's time has others' in it, who had the processor meanwhile.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from zcache.bench.nbd.times import CALLBACK, CODEC, REQUESTS, VARIABLE, Times
from zcache.page_loop import Encoder
from zcache.page_loop.choice import PAGE_LOOP

_words = Times(Path(os.environ[VARIABLE])).words


def _timed(function: Callable[..., Any], word: int, count: int = 0) -> Callable[..., Any]:
    clock = time.perf_counter_ns

    def call(*arguments: Any) -> Any:
        began = clock()
        try:
            return function(*arguments)
        finally:
            _words[word] += clock() - began
            _words[REQUESTS] += count

    return call


class _TimedEncoder:
    """See `zcache.page_loop.Encoder`."""

    def __init__(self, encoder: Encoder) -> None:
        self.page, self.run = _timed(encoder.page, CODEC), _timed(encoder.run, CODEC)


def _time(loop: Any) -> None:
    """A `PageLoop`, before anybody has looked its parts up."""
    encoder = loop.encoder
    loop.encoder = lambda *arguments: _TimedEncoder(encoder(*arguments))
    for name in ("decode_page", "decode_lz4", "decode"):
        setattr(loop, name, _timed(getattr(loop, name), CODEC))


_time(PAGE_LOOP)

_spec = importlib.util.spec_from_file_location("zcache_plugin", REPOSITORY / "nbd_plugin/plugin.py")
assert _spec and _spec.loader
_plugin = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_plugin)  # as nbdkit does, by its path
globals().update({name: value for name, value in vars(_plugin).items() if not name.startswith("_")})

pread = _timed(_plugin.pread, CALLBACK, 1)
pwrite = _timed(_plugin.pwrite, CALLBACK, 1)
