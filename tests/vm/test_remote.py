"""A guest that swaps to itself, with its cold frames at engines outside of it that are killed,
paused and cut off; what it goes through is in remote.py."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.engines import Engine, engines
from zcache.bench.run.__main__ import kernel_troubles
from zcache.bench.run.orders import taking_orders
from zcache.testvm import VmConfig
from zcache.testvm.vm import run_in_vm


def obey(all_of_them: Sequence[Engine], words: str) -> None:
    what, number = words.split()
    engine = all_of_them[int(number)]
    {"kill": engine.kill, "start": engine.start, "pause": engine.pause, "resume": engine.resume}[what]()


@pytest.mark.parametrize(
    ("memory", "copies"),
    [
        pytest.param("512M", 2, id="512 MiB, two copies", marks=pytest.mark.thorough),
        pytest.param("256M", 2, id="256 MiB, two copies", marks=pytest.mark.thorough),
        pytest.param("900M", 2, id="900 MiB, two copies", marks=pytest.mark.thorough),
        pytest.param("512M", 1, id="512 MiB, one copy and a disk", marks=pytest.mark.thorough),
    ],
)
def test_engines_are_killed_and_paused_and_cut_off_under_real_swap(tmp_path: Path, memory: str, copies: int) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(600 << 20)
    config = VmConfig(
        memory=memory,
        disks=() if copies == 2 else (disk,),
        network=True,
        kernel_log=tmp_path / "kernel.log",
        timeout_seconds=1800,
        hung_task_panic=True,
    )
    said = tmp_path / "said"
    with engines(tmp_path, 2, port=0) as pair, taking_orders(lambda words: obey(pair, words)) as order_port:
        ports = [str(engine.port) for engine in pair]
        command = [sys.executable, "-m", "tests.vm.remote", str(copies), str(order_port), *ports]
        with said.open("wb") as output:
            result = run_in_vm(config, command, output, output)
        print(said.read_text(errors="replace"))
        assert result.exit_status == 0, result.failure
        assert kernel_troubles(result.kernel_log.read_text(errors="replace")) == []
        assert [engine.call("DBSIZE") for engine in pair] == [0, 0], "swap-down has left something"
