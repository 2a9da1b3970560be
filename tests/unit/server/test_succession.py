"""What a server that goes on with an image may do, by whether another serves: if none does,
programs wait."""

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zcache.image.signs import Signs
from zcache.server.assembly import look_at_groups


def serve_once(image: int) -> None:
    """By a server that has died."""
    pid = os.fork()
    if pid == 0:
        signs = Signs(image)
        signs.begin_epoch()
        signs.begin_to_serve()
        os._exit(0)
    os.waitpid(pid, 0)


def has_looked_at_groups(image: int, is_succession: bool = True) -> bool:
    config = SimpleNamespace(is_succession=is_succession, image=image)
    groups = look_at_groups(cast(Any, config))
    if groups:
        groups.close()
    return groups is not None


def test_served_is_what_a_server_serves_that_is_there(image: int) -> None:
    signs = Signs(image)
    assert not signs.is_served()  # there was none
    serve_once(image)
    assert signs.serves and not signs.is_served()
    signs.begin_epoch()
    assert not signs.is_served()  # not yet
    signs.begin_to_serve()
    assert signs.is_served()


def test_mounts_and_groups_are_not_looked_at_while_nobody_serves(image: int) -> None:
    """The kernel's locks that this takes may be held by somebody who waits for a page."""
    assert has_looked_at_groups(image, is_succession=False)
    serve_once(image)
    assert not has_looked_at_groups(image)
    signs = Signs(image)
    signs.begin_epoch()
    signs.begin_to_serve()
    assert has_looked_at_groups(image)


def test_a_successor_goes_on_whatever_fails_there(image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    signs = Signs(image)
    signs.begin_epoch()
    signs.begin_to_serve()
    monkeypatch.setattr("zcache.linux.group_limits.GroupLimits.__init__", lambda _self: 1 // 0)
    assert not has_looked_at_groups(image)
