"""Frames come back from below."""
