"""scripts/bench BENCHMARK [options]."""

import sys

from zcache.bench import ablation, store

BENCHMARKS = {"store": store.main, "ablation": ablation.main}


def main() -> int:
    """Exit status of the benchmark; 2 for an unknown one."""
    words = sys.argv[1:]
    if not words or words[0] not in BENCHMARKS:
        print(f"usage: scripts/bench {{{','.join(BENCHMARKS)}}} [options]", file=sys.stderr)
        return 0 if words[:1] in (["-h"], ["--help"]) else 2
    return BENCHMARKS[words[0]](words[1:])


if __name__ == "__main__":
    sys.exit(main())
