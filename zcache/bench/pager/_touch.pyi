"""What is compiled; see touches.py."""

from array import array

def touch(start: int, pages: array[int], writes: bytes, times: array[float], seconds: float, /) -> int: ...
