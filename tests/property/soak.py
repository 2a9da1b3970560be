"""python -m tests.property.soak: as many operations as asked for, against the dict, in as many
small worlds. One in `REMOTE_EVERY` has engines below (`tests.property.remote_world`), or all with
--remote-only: those whose seeds it divides.

A failure prints the world's seed, the operation's number and the last operations; `--world SEED`
runs that world alone. A world that stands still is killed, with the stacks of its threads on
stderr.
"""

import argparse
import faulthandler
import multiprocessing
import random
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Final

from tests.property.remote_world import RemoteWorld
from tests.property.world import World

#: Operations in one world: enough for its budget to be filled, and emptied, many times over.
WORLD_OPERATIONS: Final = 2500

REMOTE_EVERY: Final = 3

#: No world takes a tenth of it.
STANDSTILL_SECONDS: Final = 60.0

REPORT_SECONDS: Final = 10.0


def new_world(seed: int) -> World:
    """Of the kind that its seed says."""
    return World(seed) if seed % REMOTE_EVERY else RemoteWorld(seed)


def run_world(seed: int, operations: int) -> tuple[int, str]:
    """How many operations were done, and what was found, in full (nothing: empty)."""
    faulthandler.dump_traceback_later(STANDSTILL_SECONDS, exit=True)
    world = new_world(seed)
    try:
        world.run(operations)
    except Exception:
        where = f"{world.describe()}\nat operation {world.operations}:\n{world.log()}"
        how = f"replay: python -m tests.property.soak --world {seed} --operations {operations}"
        return world.operations, f"{traceback.format_exc()}\n{where}\n{how}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    return world.operations, ""


def run_worlds(seed: int, operations: int, jobs: int, is_remote_only: bool = False) -> Iterator[tuple[int, str]]:
    """`operations` in worlds whose seeds follow from `seed`, in `jobs` processes; yields as
    `run_world` does, until something is found."""
    rng = random.Random(seed)
    factor = REMOTE_EVERY if is_remote_only else 1
    seeds = iter([rng.getrandbits(48) * factor for _ in range(-(-operations // WORLD_OPERATIONS))])
    running: dict[Future[tuple[int, str]], int] = {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            while True:
                for world_seed in islice(seeds, 2 * jobs - len(running)):
                    running[pool.submit(run_world, world_seed, WORLD_OPERATIONS)] = world_seed
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    done, found = future.result()
                    del running[future]
                    yield done, found
                    if found:
                        return
        except BrokenProcessPool:
            yield 0, f"a world stood still or crashed; one of {sorted(running.values())}"
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.property.soak", description=__doc__)
    parser.add_argument("--operations", type=lambda text: int(text.replace("_", "")), default=1_000_000)
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--seed", type=int, help="of all worlds' seeds (a new one)")
    parser.add_argument("--world", type=int, help="run only the world with this seed, in this process")
    parser.add_argument("--remote-only", action="store_true", help="all worlds have engines below")
    options = parser.parse_args()
    if options.world is not None:
        done, found = run_world(options.world, min(options.operations, WORLD_OPERATIONS))
        print(found or f"{done} operations, nothing found")
        return bool(found)

    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    print(f"seed {seed}: {options.operations} operations, {options.jobs} processes", flush=True)
    begin = said = time.monotonic()
    total = worlds = 0
    for done, found in run_worlds(seed, options.operations, options.jobs, options.remote_only):
        total += done
        worlds += 1
        now = time.monotonic()
        if found:
            print(found)
            print(f"FOUND after {total} operations in {worlds} worlds, {now - begin:.0f} s; --seed {seed}")
            return 1
        if now - said > REPORT_SECONDS:
            said = now
            print(f"{total} operations, {worlds} worlds, {total / (now - begin):.0f} a second", flush=True)
    seconds = time.monotonic() - begin
    print(f"{total} operations in {worlds} worlds: nothing found; {seconds:.0f} s, {total / seconds:.0f} a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
