"""The guest's half of scripts/run: real swap on /dev/nbdN, served from inside, under a load; the outcome as JSON.

Called as `python -m zcache.testvm.swap_run REPORT KEY=VALUE… -- COMMAND`. Measures what the kernel says (/proc/vmstat,
the server's page faults) and what the server says, checks the store's books while the pages are still out, then takes
the swap off.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from zcache.control import ask
from zcache.errors import ZcacheError
from zcache.swap.error import SwapError
from zcache.swap.up import Options, swap_area
from zcache.testvm.figures import page_faults, read_vmstat

PROGRESS_SECONDS: Final = 10.0


def main(words: list[str]) -> int:
    """Exit status 0 if the load's was and the books balance; the report says the rest."""
    report_path = Path(words[0])
    split = words.index("--")
    try:
        report = run_load(tuple(words[1:split]), words[split + 1 :])
    except (SwapError, ZcacheError) as error:
        print(f"swap_run: {error}", file=sys.stderr)
        return 1
    report_path.write_text(json.dumps(report, indent=2))
    return 0 if report["load_exit_status"] == 0 and report["check"]["balanced"] else 1


def run_load(parameters: tuple[str, ...], load: list[str]) -> dict[str, Any]:
    """Swap on, run the load, look at everything, swap off."""
    report: dict[str, Any] = {"parameters": parameters, "load": load}
    with swap_area(Options(parameters=parameters)) as state:
        control = Path(state.control)
        before = read_vmstat()
        server_pid = ask(control, "status")["pid"]
        faults_before = page_faults(server_pid)
        begin = time.monotonic()
        report["load_exit_status"], report["load_output"] = _watch(load, before)
        report["load_seconds"] = round(time.monotonic() - begin, 1)
        after = read_vmstat()
        report["server_page_faults"] = page_faults(server_pid) - faults_before
        report["pages_out"] = after["pswpout"] - before["pswpout"]
        report["pages_in"] = after["pswpin"] - before["pswpin"]
        report["status"] = ask(control, "status")
        report["check"] = ask(control, "check")
        begin = time.monotonic()
    report["swap_off_seconds"] = round(time.monotonic() - begin, 1)
    return report


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
