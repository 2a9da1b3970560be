"""Who takes over from whom, when a process cannot be had, hangs or is in the wrong order."""

import pytest

from tests.support.keepers import Looked, Servers
from zcache.keeper import succession
from zcache.keeper.channel import BEGIN, READY


def test_a_second_upgrade_that_cannot_start_a_process(looked: Looked, servers: Servers) -> None:
    """While the first one's new code is still starting: that is ended, and nothing is left of it to
    be asked."""
    keeper = looked.keeper
    servers.started.append((new := servers.start(), servers.started[-1][1]))
    new.has_said_ready = False
    new.channel.recv(1)
    keeper.succession.replacement = new
    keeper.signals.is_to_be_replaced = True
    servers.failure = BlockingIOError(11, "no process can be had")
    looked.turns(3)
    assert keeper.succession.replacement is None
    assert [line for line in looked.said if "no process" in line] == [
        "BlockingIOError: [Errno 11] no process can be had"
    ]
    servers.failure = None
    assert looked.replaces_a_server_that_dies()


def test_new_code_that_cannot_be_started_is_refused(looked: Looked, servers: Servers) -> None:
    refusals: list[bool] = []
    looked.keeper.succession.refuse_upgrade = lambda: refusals.append(True)  # type: ignore[method-assign]
    looked.keeper.signals.is_to_be_replaced = True
    servers.failure = BlockingIOError(11, "no process can be had")
    looked.turns(3)
    assert refusals == [True]


def test_a_second_upgrade_after_the_first_has_died_goes_back_to_the_code_before_both(
    looked: Looked, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = looked.keeper
    keeper.signals.is_to_be_replaced = True
    looked.turns(2)
    new = keeper.succession.server
    assert new not in (looked.first, looked.standby) and keeper.succession.old_standby is looked.standby
    monkeypatch.setattr(keeper.succession, "serves", lambda: False)
    keeper.succession.replacement = servers.start()
    new.kill()
    assert new.wait(10)
    looked.turns(2)
    assert keeper.succession.server is looked.standby


def test_there_is_no_upgrade_without_a_standby_of_the_server_s_code(looked: Looked) -> None:
    """The heir was killed: the standby is of what was on disk then, which need not be what serves
    now."""
    keeper = looked.keeper
    looked.standby.kill()
    assert looked.standby.wait(10)
    looked.turns(1)
    keeper.succession.rest.end_seconds = 0
    looked.turns(2)
    from_disk = keeper.succession.standby
    assert from_disk and from_disk is not looked.standby and from_disk.is_ready()
    refusals: list[bool] = []
    keeper.succession.refuse_upgrade = lambda: refusals.append(True)  # type: ignore[method-assign]
    keeper.signals.is_to_be_replaced = True
    looked.turns(3)
    assert refusals == [True] and any("no way back" in line for line in looked.said)
    assert (keeper.succession.server, keeper.succession.standby, keeper.succession.replacement) == (
        looked.first,
        from_disk,
        None,
    )
    assert not keeper.succession.server.has_ended()


def test_an_upgrade_waits_for_an_heir_that_is_on_its_way(looked: Looked, servers: Servers) -> None:
    keeper = looked.keeper
    looked.standby.has_said_ready = False
    keeper.signals.is_to_be_replaced = True
    looked.turns(3)
    assert keeper.succession.server is looked.first and keeper.succession.replacement
    servers.started[1][1].send(READY)
    looked.turns(1)
    assert keeper.succession.server is not looked.first and keeper.succession.old_standby is looked.standby


def test_new_code_that_is_ready_serves_when_nothing_else_can(looked: Looked) -> None:
    keeper = looked.keeper
    for server in (looked.standby, looked.first):
        server.kill()
        assert server.wait(10)
    keeper.succession.rest.end_seconds = 1e9
    keeper.signals.is_to_be_replaced = True
    looked.turns(4)
    assert keeper.succession.server not in (looked.first, looked.standby) and not keeper.succession.server.has_ended()


def test_a_standby_that_never_gets_ready_gives_way_when_it_is_needed(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = looked.keeper
    looked.standby.has_said_ready = False
    monkeypatch.setattr(succession, "STANDBY_SECONDS", 0.0)
    looked.turns(2)
    assert keeper.succession.standby is looked.standby, "the server lives: there is time"
    looked.first.kill()
    assert looked.first.wait(10)
    looked.turns(1)
    assert looked.standby.wait(10)
    keeper.succession.rest.end_seconds = 0
    looked.turns(1)
    keeper.succession.rest.end_seconds = 0
    looked.turns(3)
    assert keeper.succession.server not in (looked.first, looked.standby) and not keeper.succession.server.has_ended()


def test_an_heir_that_takes_over_leaves_one_whatever_was_before(looked: Looked, servers: Servers) -> None:
    """As when new code has died at once: back to the old code's heir, which must have one in its
    turn."""
    looked.keeper.succession.is_from_disk = True
    assert looked.replaces_a_server_that_dies()
    assert servers.started[1][1].recv(1) == BEGIN
