"""scripts/bench BENCHMARK [options]."""

import signal
import sys

from zcache.bench import ablation, soak, store
from zcache.testvm.signals import end_in_order

BENCHMARKS = {"store": store.main, "ablation": ablation.main, "soak": soak.main}


def main() -> int:
    """Exit status of the benchmark; 2 for an unknown one."""
    words = sys.argv[1:]
    if not words or words[0] not in BENCHMARKS:
        print(f"usage: scripts/bench {{{','.join(BENCHMARKS)}}} [options]", file=sys.stderr)
        return 0 if words[:1] in (["-h"], ["--help"]) else 2
    end_in_order()
    try:
        return BENCHMARKS[words[0]](words[1:])
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
