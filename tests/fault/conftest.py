"""Every fault meets either seal."""

import pytest

from tests.support import stores


@pytest.fixture(params=["no", "yes"], autouse=True)
def default_encrypt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "default_encrypt", request.param)
