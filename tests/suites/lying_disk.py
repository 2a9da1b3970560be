"""A disk in RAM, as an nbdkit Python plugin, that returns a wrong bit in every read: what each
suite must find.

Parameters: `size=BYTES`.
"""

from typing import Any

import nbdkit

API_VERSION = 2

_disk = bytearray()


def config(key: str, value: str) -> None:
    if key != "size":
        raise ValueError(f"{key}: no such parameter")
    _disk.extend(bytes(int(value)))


def open(readonly: bool) -> Any:  # noqa: ARG001
    return object()


def get_size(_: Any) -> int:
    return len(_disk)


def pread(_: Any, buf: Any, offset: int, flags: int) -> None:  # noqa: ARG001
    buf[:] = _disk[offset : offset + len(buf)]
    buf[0] ^= 1


def pwrite(_: Any, buf: Any, offset: int, flags: int) -> None:  # noqa: ARG001
    _disk[offset : offset + len(buf)] = buf


def flush(_: Any, flags: int) -> None:
    pass


def can_multi_conn(_: Any) -> bool:
    return True


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS)
