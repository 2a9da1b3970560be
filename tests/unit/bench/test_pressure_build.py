"""The build of scripts/pressure ends when it is told to."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from zcache.bench.pressure import build


def test_no_thread_of_it_can_take_the_signal_from_the_one_that_waits(tmp_path: Path) -> None:
    words = [sys.executable, "-I", "-S", build.__file__, str(tmp_path / "build"), "2"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        tasks = Path(f"/proc/{process.pid}/task")
        while len(list(tasks.iterdir())) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        workers = [task for task in tasks.iterdir() if task.name != str(process.pid)]
        masks = [(task / "status").read_text().partition("SigBlk:")[2].split()[0] for task in workers]
        process.terminate()
        output = process.communicate(timeout=60)[0]
    assert len(masks) == 2 and all(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks), masks
    assert process.returncode == 0 and json.loads(output)["compiled"] >= 1
