"""The words between a standby and its keeper, which each side has for itself."""

from zcache.keeper import server_process
from zcache.server import standby


def test_both_ends_of_the_channel_have_the_same_words() -> None:
    for name in ("READY", "BEGIN_ALONE", "FILES"):
        assert getattr(standby, name) == getattr(server_process, name)
    assert server_process.BEGIN not in (standby.READY, standby.BEGIN_ALONE, standby.FILES, b"")
    assert standby.MAX_FILES <= server_process.MAX_FILES
