"""What a server says of its engines beside what they say themselves."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from zcache.server import remote_place
from zcache.server.remote_place import RemotePlace


@pytest.mark.parametrize(
    ("is_short", "overcommit", "said"),
    [
        (False, False, []),
        (True, False, ["engines have room for 80.0M of the 256.0M of frames that remote_budget promises, each twice"]),
        (True, True, []),  # nothing was promised
    ],
)
def test_engines_that_hold_less_than_is_promised_are_a_reason(
    monkeypatch: pytest.MonkeyPatch, is_short: bool, overcommit: bool, said: list[str]
) -> None:
    mender = SimpleNamespace(troubles=lambda: ["remote a: out of reach"], is_short=is_short)
    remote = SimpleNamespace(tier=SimpleNamespace(promised_room=lambda: 1280), mender=mender)
    monkeypatch.setattr(remote_place, "Remote", lambda *_, **__: remote)
    config = SimpleNamespace(remote_bytes=256 << 20, frame_bytes=65536, remote_frames=4096, overcommit=overcommit)
    files = SimpleNamespace(engines=SimpleNamespace(refresh=lambda: None), backing=None)
    place = RemotePlace(cast(Any, config), cast(Any, files), print)
    assert place.troubles() == []
    place.make(None, b"secret")
    first, *more = place.troubles()
    assert first == "remote a: out of reach" and [line.partition(": ")[0] for line in more] == said
    assert all("raise their maxmemory and quotas" in line for line in more)
