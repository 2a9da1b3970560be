"""Pageframes: what states a frame can be in, which are in RAM, and in which order they leave it."""

from zcache.pageframes.frames import PageFrames
from zcache.pageframes.states import State

__all__ = ["PageFrames", "State"]
