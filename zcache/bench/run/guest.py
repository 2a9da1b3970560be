"""The guest's half of scripts/run: real swap on /dev/nbdN, served from inside, under a load; the
outcome as JSON.

Called as `python -m zcache.bench.run.guest REPORT [options] KEY=VALUE… -- COMMAND`; options are
what is done meanwhile to the server (`disturbance`) or to an engine (`whereabouts`). Measures what
the kernel says (/proc/vmstat, the server's page faults) and what the server says, checks the
store's books while the pages are still out, then takes the swap off.

On a slow machine a load may end before it has filled the budget. With a backing, it runs again
then, `MAX_LOADS` times in all: what there is to see is what happens after that.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from zcache.bench.run.device_probe import DeviceProbe
from zcache.bench.run.disturbance import Disturbance
from zcache.bench.run.disturbance import parse as parse_disturbance
from zcache.bench.run.whereabouts import Whereabouts
from zcache.control.ask import ask
from zcache.errors import ZcacheError
from zcache.keeper.state import StateFolder
from zcache.swap.buildup import Options
from zcache.swap.up import swap_area
from zcache.testvm.figures import others_in_group, own_kib, page_faults, read_netstat, read_vmstat

PROGRESS_SECONDS: Final = 10.0
MAX_LOADS: Final = 3


def main(words: list[str]) -> int:
    """Exit status 0 if the load's was and the books balance; the report says the rest."""
    split = words.index("--")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("report", type=Path)
    parser.add_argument("--disturb", metavar="KIND:TIMES:SECONDS")
    parser.add_argument("--orders", type=int, metavar="PORT", help="where the host kills an engine, when told to")
    parser.add_argument("--kill-seconds", type=float, help="when to tell it")
    parser.add_argument("parameters", nargs="*")
    given = parser.parse_intermixed_args(words[:split])
    engines = (given.orders, given.kill_seconds) if given.orders else None
    try:
        report = run_load(given.parameters, words[split + 1 :], given.disturb, engines)
    except ZcacheError as error:
        print(f"swap_run: {error}", file=sys.stderr)
        return 1
    given.report.write_text(json.dumps(report, indent=2))
    return 0 if report["load_exit_status"] == 0 and report["check"]["balanced"] else 1


def run_load(
    parameters: Sequence[str],
    load: list[str],
    disturbance: str | None = None,
    engines: tuple[int, float] | None = None,
) -> dict[str, Any]:
    """Swap on, run the load, look at everything, swap off. `engines` is where the host takes
    orders, and after how many seconds it is told to kill one."""
    report: dict[str, Any] = {"parameters": parameters, "load": load}
    with swap_area(Options(parameters=tuple(parameters))) as state:
        control = StateFolder().control
        before = read_vmstat()
        server_pid = ask(control, "status")["pid"]
        faults_before = page_faults(server_pid)
        report["keeper_kib"] = own_kib(state.keeper.pid)
        report["standby_kib"] = sum(own_kib(pid) for pid in others_in_group(state.keeper.pid) if pid != server_pid)
        probe = DeviceProbe(state.device or "")
        trouble = Disturbance(*parse_disturbance(disturbance), StateFolder()) if disturbance else None
        places = Whereabouts(control, *engines) if engines else None
        begin = time.monotonic()
        probe.start()
        if trouble:
            trouble.start()
        if places:
            places.start()
        for number in range(1, MAX_LOADS + 1):
            report["load_exit_status"], report["load_output"] = _watch(load, before)
            if trouble or places or report["load_exit_status"] or number == MAX_LOADS:
                break
            if not _is_unfilled(ask(control, "status")):
                break
            print("  the budget is not exhausted yet: the load runs once more", flush=True)
        report["load_seconds"] = round(time.monotonic() - begin, 1)
        if trouble:
            report["disturbed"], report["disturbance_failure"] = trouble.stop(), trouble.failure
        if places:
            report["whereabouts"] = places.stop()
            report["netstat"] = read_netstat()
        report["longest_stall_seconds"] = round(probe.stop(), 2)
        after = read_vmstat()
        # Of the server that we began with.
        report["server_page_faults"] = 0 if trouble else page_faults(server_pid) - faults_before
        report["pages_out"] = after["pswpout"] - before["pswpout"]
        report["pages_in"] = after["pswpin"] - before["pswpin"]
        report["status"] = ask(control, "status")
        report["check"] = ask(control, "check")
        report["server_log"] = StateFolder().log.read_text(errors="replace")
        begin = time.monotonic()
    report["swap_off_seconds"] = round(time.monotonic() - begin, 1)
    return report


def _is_unfilled(status: dict[str, Any]) -> bool:
    """Whether there is a backing, and nothing was ever written there."""
    return status["backing"] is not None and not status["written_back_frames"] + status["backing_frames"]


def _watch(load: list[str], before: dict[str, int]) -> tuple[int, str]:
    """Run the load and say now and then how far swapping has got."""
    output_path = Path("/tmp/load.log")
    begin = time.monotonic()
    with output_path.open("wb") as output, subprocess.Popen(load, stdout=output, stderr=output) as child:
        while True:
            try:
                status = child.wait(PROGRESS_SECONDS)
            except subprocess.TimeoutExpired:
                now = read_vmstat()
                out, back = (now[name] - before[name] for name in ("pswpout", "pswpin"))
                print(f"  {time.monotonic() - begin:4.0f} s: {out} pages out, {back} in", flush=True)
            else:
                return status, output_path.read_text(errors="replace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
