"""Heirs, as the keeper is told of them."""

import os
import socket
import subprocess

import pytest

from zcache.keeper.channel import READY
from zcache.keeper.server_process import ServerProcess
from zcache.steps import StepsWatch


def test_an_heir_whose_pid_is_somebody_elses_by_now_is_left_alone() -> None:
    ours, theirs = socket.socketpair()
    heirs, others = socket.socketpair()
    program = subprocess.Popen(["sleep", "60"])
    program.returncode = 0
    server = ServerProcess(program.pid, ours)
    theirs.send(READY)
    assert server.is_ready()
    socket.send_fds(theirs, [b"1"], [heirs.fileno()])
    assert server.heir() is None
    child = subprocess.Popen(["sleep", "60"])
    child.returncode = 0
    socket.send_fds(theirs, [str(child.pid).encode()], [heirs.fileno()])
    heir = server.heir()
    assert heir and heir.pid == child.pid
    heir.discard()
    server.discard()
    for each in (theirs, heirs, others):
        each.close()


def test_an_heir_that_has_died_keeps_no_descriptor_of_its_predecessor() -> None:
    """Its steps were shared with it, and not given back."""
    ours, theirs = socket.socketpair()
    program = subprocess.Popen(["sleep", "60"])
    program.returncode = 0
    steps = StepsWatch()
    os.close(steps.writer)
    server = ServerProcess(program.pid, ours, steps)
    dead = subprocess.Popen(["true"])
    dead.wait()
    heirs, others = socket.socketpair()
    theirs.send(READY)
    assert server.is_ready()
    socket.send_fds(theirs, [str(dead.pid).encode()], [heirs.fileno()])
    assert server.heir() is None
    server.discard()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(steps.fileno())
    for each in (theirs, heirs, others):
        each.close()
