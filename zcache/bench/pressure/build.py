"""A build: `build.py FOLDER JOBS` compiles a tree of sources it has made, over and over, until
SIGTERM.

Each source is compiled by a Python of its own, in a shell pipeline of its own: four forks and four
execs. What comes out for a source must be the same each time. The last line of its output is JSON:
how many were compiled.
"""

import json
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

SOURCE_COUNT = 24
#: Some 40 KiB of source, and some 10 MiB of heap to compile it.
FUNCTIONS = 300
COMPILE = "import marshal, sys; sys.stdout.buffer.write(marshal.dumps(compile(open(sys.argv[1]).read(), 'x', 'exec')))"


def make_sources(folder: Path) -> list[Path]:
    rng = random.Random(0)
    folder.mkdir()
    paths = [folder / f"source{number}.py" for number in range(SOURCE_COUNT)]
    for path in paths:
        numbers = [rng.getrandbits(30) for _ in range(FUNCTIONS)]
        path.write_text(
            "".join(
                f"def function_{n}(a, b=({n}, 'text {n}')):\n    return [a * x + {n} for x in b if x != {n} // 7]\n\n"
                for n in numbers
            )
        )
    return paths


class Build:
    """`jobs` threads, each of which waits for one compiler after the other."""

    def __init__(self, sources: list[Path]) -> None:
        self._sources = sources
        self._lock = threading.Lock()
        self._outputs: dict[Path, str] = {}
        self.ended = threading.Event()
        self.compiled = 0
        self.wrong: list[str] = []

    def work(self) -> None:
        while not self.ended.is_set() and not self.wrong:
            with self._lock:
                source = self._sources[self.compiled % len(self._sources)]
                self.compiled += 1
            pipeline = f"'{sys.executable}' -I -S -c \"{COMPILE}\" {source} | sha256sum | cut -c 1-64"
            done = subprocess.run(["sh", "-c", pipeline], capture_output=True, text=True, check=False)
            with self._lock:
                first = self._outputs.setdefault(source, done.stdout)
            if done.stdout != first or done.stderr or len(first) != 65:
                self.wrong.append(f"{source}: {done.stdout!r} {done.stderr!r}, at first {first!r}")


def main(folder: Path, jobs: int) -> int:
    build = Build(make_sources(folder))
    # Blocked everywhere and waited for, not handled: subprocess masks all signals of its thread
    # while it forks, and a thread that unmasks a signal takes it from the main thread, which then
    # sleeps on (one time in twelve).
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threads = [threading.Thread(target=build.work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    signal.sigwait({signal.SIGTERM})
    build.ended.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"compiled": build.compiled}))
    if build.wrong:
        print(f"build: WRONG: {build.wrong[0]}", file=sys.stderr)
    return 1 if build.wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
