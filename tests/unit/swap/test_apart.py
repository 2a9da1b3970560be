"""Work done in a process of its own: its result, its errors, and that nothing of it stays here."""

import os
import signal
import subprocess
import sys
import time

import pytest

from zcache.errors import SwapError
from zcache.swap.apart import apart


def test_the_result_comes_from_another_process_which_was_announced_before() -> None:
    announced: list[int] = []
    assert apart(os.getpid, announced.append) in announced
    assert os.getpid() not in announced
    with pytest.raises(ChildProcessError):  # and it has been waited for
        os.waitpid(announced[0], os.WNOHANG)


def test_a_large_result_comes_whole() -> None:
    assert apart(lambda: b"page" * 1_000_000) == b"page" * 1_000_000


def test_its_error_is_raised_here() -> None:
    def fail() -> None:
        raise SwapError("the kernel's nbd driver refused")

    with pytest.raises(SwapError, match=r"^the kernel's nbd driver refused$"):
        apart(fail)


def test_a_mistake_in_it_is_shown_and_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SwapError, match="ended with 1"):
        apart(lambda: 1 // 0)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_its_violent_death_is_reported() -> None:
    with pytest.raises(SwapError, match="ended with -9"):
        apart(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_ctrl_c_is_for_us_and_not_for_it() -> None:
    def interrupt_ourselves() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "went on"

    assert apart(interrupt_ourselves) == "went on"


def test_an_error_while_it_works_ends_it() -> None:
    pids: list[int] = []

    def on_alarm(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(TimeoutError):
            apart(lambda: time.sleep(60), pids.append)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_nothing_is_done_when_the_announcement_fails() -> None:
    reader, writer = os.pipe()

    def refuse(_pid: int) -> None:
        raise OSError("no space for the state")

    with pytest.raises(OSError, match="no space"):
        apart(lambda: os.write(writer, b"done"), refuse)
    os.close(writer)
    assert os.read(reader, 4) == b""
    os.close(reader)


def test_what_it_loads_is_not_loaded_here() -> None:
    """For which it exists: swap-up must not hold pyroute2 at swapon."""
    program = """if True:
        import sys
        import zcache.swap.up
        from zcache.swap.apart import apart
        def load():
            import zcache.swap.nbd_netlink
            return "pyroute2" in sys.modules
        print(apart(load), "pyroute2" in sys.modules)"""
    output = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == "True False\n"
