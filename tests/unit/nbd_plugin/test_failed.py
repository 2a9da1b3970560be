"""What nbdkit is given to keep of requests that fail."""

import gc
import sys
import traceback

import pytest

from nbd_plugin.failed import FAILED, RequestFailed, print_failures_in_a_line
from zcache.hardening.log_pipe import SAID


def callback() -> None:
    """As those of the plugin are."""
    try:
        raise FAILED
    except RequestFailed:
        FAILED.__traceback__ = None
        raise


def test_nbdkit_is_given_nothing_that_takes_memory() -> None:
    """What arrives where the callback was called from has no traceback but that place's own, and is
    the same again."""
    kept = []
    for _ in range(3):
        try:
            callback()
        except RequestFailed as failure:
            assert failure is FAILED and failure.__context__ is None
            assert failure.__traceback__ and failure.__traceback__.tb_next is None  # this frame, and not the callback's
            kept.append(failure)
    assert len(set(map(id, kept))) == 1
    before = len(gc.get_objects())
    for _ in range(1000):
        with pytest.raises(RequestFailed):
            callback()
    assert len(gc.get_objects()) < before + 100


def test_what_nbdkit_prints_is_left_out_of_the_log_and_other_exceptions_are_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = traceback.format_exception
    monkeypatch.setattr(traceback, "format_exception", before)
    print_failures_in_a_line()
    assert traceback.format_exception(RequestFailed, FAILED)[0].endswith(SAID)
    try:
        raise ValueError("something else")
    except ValueError as error:
        assert traceback.format_exception(type(error), error, sys.exc_info()[2]) == before(error)
