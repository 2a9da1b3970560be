"""Signals that come between the steps, and those that wait for one."""

import os
import signal

import pytest

from zcache.swap import interruption
from zcache.swap.interruption import Interrupted, Interruption


def test_a_held_signal_waits_and_only_the_first_counts() -> None:
    with Interruption() as interruption:
        with pytest.raises(Interrupted), interruption.held():
            os.kill(os.getpid(), signal.SIGTERM)
            reached = True
        assert reached
        os.kill(os.getpid(), signal.SIGINT)


def test_a_free_signal_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "is_ignored", lambda _signum: False)  # as it is where tests run in the background
    with Interruption(), pytest.raises(Interrupted) as caught:
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.exit_status == 130
