"""`scripts/bench [BENCHMARK] [options]`: one benchmark, or without a name those that compare, into
one report."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from zcache.bench import ablation, against, groups
from zcache.bench.breathing import __main__ as breathing
from zcache.bench.clean import __main__ as clean
from zcache.bench.filesystems import __main__ as filesystems
from zcache.bench.nbd import peers, shards
from zcache.bench.pager import __main__ as pager
from zcache.bench.remote import __main__ as remote
from zcache.bench.report import Report
from zcache.bench.soak import __main__ as soak
from zcache.bench.store import __main__ as store
from zcache.bench.swap import __main__ as swap
from zcache.errors import ZcacheError
from zcache.linux import standard_streams
from zcache.page_loop.choice import check as check_page_loop
from zcache.pages.codec import parse_codec
from zcache.testvm.signals import end_in_order

BENCHMARKS = {
    "store": store.main,
    "peers": peers.main,
    "shards": shards.main,
    "swap": swap.main,
    "clean": clean.main,
    "breathing": breathing.main,
    "filesystems": filesystems.main,
    "ablation": ablation.main,
    "soak": soak.main,
    "groups": groups.main,
    "pager": pager.main,
    "remote": remote.main,
}


def compare(words: Sequence[str]) -> int:
    """The store beside its codec, zcache beside nbdkit's own plugins, and one server beside two."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the store beside its codec, zcache beside nbdkit's own plugins, and one server beside "
        f"two. By itself, with more options, or something else: scripts/bench {{{','.join(BENCHMARKS)}}} --help. "
        f"This tree beside another: scripts/bench {{{','.join(against.COMPARABLE)}}} --against PATH",
    )
    parser.add_argument("--quick", action="store_true", help="fewer pages and rounds: under 5 minutes, figures noisier")
    parser.add_argument("--folder", type=Path, help="for the results (default: a new temporary one)")
    arguments = parser.parse_args(words)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-"))
    report = Report(folder, Console(width=150))
    codecs = [parse_codec("lz4"), parse_codec("zstd:1")]
    if arguments.quick:
        store.measure(report, codecs, page_limit=4096, rounds=3, seed=1)
        peers.measure(report, size_mib=128, seconds=2, rounds=1)
        shards.measure(report, size_mib=128, seconds=2, rounds=1)
    else:
        store.measure(report, codecs, page_limit=16384, rounds=7, seed=1)
        peers.measure(report, size_mib=256, seconds=5, rounds=5)
        shards.measure(report, size_mib=256, seconds=5, rounds=3)
    report.save()
    report.console.print(f"report.json and plots: {folder}")
    return 0


def main() -> int:
    """Exit status of the benchmark; 2 for an unknown one."""
    words = sys.argv[1:]
    benchmark = compare
    if words and not words[0].startswith("-"):
        if words[0] not in BENCHMARKS:
            print(f"bench: {words[0]}: no such benchmark; give {', '.join(BENCHMARKS)}, or none", file=sys.stderr)
            return 2
        name = words.pop(0)
        benchmark = BENCHMARKS[name]
        if name in against.COMPARABLE and any(word.split("=")[0] == "--against" for word in words):
            benchmark = partial(against.main, name)
    end_in_order()
    try:
        check_page_loop()
        return benchmark(words)
    except ZcacheError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(standard_streams.run("bench", main, lost_output=125))
