"""The nbdkit callbacks (Python plugin API version 2): what nbdkit runs as `script=`. They
translate, and do nothing else.

Life: `config` and `config_complete` gather parameters; `get_ready` opens everything that can be
refused, before a socket exists (a server that a keeper starts does so when its turn has come);
`after_fork` makes the process safe, waits if it is a standby, and starts the server; requests;
`cleanup`. A callback that a client can make fail raises `FAILED` and nothing else, in the way that
`failed.py` says.
"""

import errno
import os
import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zcache.steps import Steps

_steps = Steps.from_environment()
_steps.begin("loading the plugin")  # some hundred files, which take an emulated guest half a minute
import nbdkit

from nbd_plugin.ending import end_on_signals, hold_signals
from nbd_plugin.failed import FAILED, RequestFailed, print_failures_in_a_line
from nbd_plugin.front_end import front_end
from nbd_plugin.nbdkit_options import LAST_WORDS
from zcache.block.device import Device
from zcache.block.exports import Disk, Exports
from zcache.block.failures import Failures
from zcache.block.scratch import scratch_disks
from zcache.clock import Clock
from zcache.errors import StoreFull
from zcache.hardening import keep_thread
from zcache.hardening.log_pipe import say, say_what_nobody_catches
from zcache.image.signs import DEVICE_EXPORT
from zcache.linux import libc
from zcache.pages.entry import PAGE_BYTES
from zcache.server.config import DEVICE_NAME, parse_config
from zcache.server.failing_start import or_end
from zcache.server.server import Server

API_VERSION = 2
MAX_EXTENTS = 1024  #: for one request; the client asks again from where they end
#: What a client is told to ask for at once, at most.
MOST_REQUEST_BYTES = 32 << 20

_words: list[tuple[str, str]] = []
_server: Server
_exports: Exports
_failures = Failures(nbdkit.set_error, say, Clock())

say_what_nobody_catches("zcache", _steps)
print_failures_in_a_line()


def _or_end() -> AbstractContextManager[None]:
    return or_end(_steps, lambda: _server.abandon())


def config(key: str, value: str) -> None:
    _words.append((key, value))


def config_complete() -> None:
    global _server
    with _or_end():
        may_hang = [f"backing={value}" for key, value in _words if key == "backing"]
        _steps.begin(", ".join(["reading the configuration", *may_hang]))
        _server = Server(parse_config(_words), _steps, front_end(_failures))


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def get_ready() -> None:
    with _or_end():
        _server.get_ready()
        _steps.begin("nbdkit makes its socket")


def after_fork() -> None:
    global _exports
    with _or_end():
        _steps.begin("holding signals")
        hold_signals()
        if os.environ.pop(LAST_WORDS, ""):
            libc.put_off_abort()
        _server.make_safe()
        _warm_up_callbacks()
        _server.wait_for_turn()
        _server.start()
        _exports = Exports(Device(_server.store, _server.pages), {disk.name: disk for disk in _server.clean})
        is_kept = _server.config.standby is not None
        end = _server.leave if is_kept else nbdkit.shutdown
        end_on_signals(end, at_once=is_kept, is_own=_server.has_made)
        _server.begin_to_serve()


def cleanup() -> None:
    _server.stop()


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:  # noqa: ARG001
    return list(_exports.list())


def default_export(readonly: bool, is_tls: bool) -> str:  # noqa: ARG001
    return DEVICE_NAME


class Connection:
    """A client's, to one disk. `is_device`: it is the kernel's device that is at the other end."""

    __slots__ = ("disk", "is_device")

    def __init__(self, disk: Disk, is_device: bool) -> None:
        self.disk = disk
        self.is_device = is_device


def open(readonly: bool) -> Connection:  # noqa: ARG001
    try:
        name = str(nbdkit.export_name())
        connection = Connection(_exports.find(name), name == DEVICE_EXPORT)
        if connection.is_device:
            _server.count_connection(1)
        return connection
    except Exception as error:
        _failures.refuse(error)
    try:
        raise FAILED
    except RequestFailed:
        FAILED.__traceback__ = None
        raise


def close(connection: Connection) -> None:
    """nbdkit calls it when the last request of the connection has been dealt with."""
    if connection.is_device:
        _server.count_connection(-1)


def get_size(connection: Connection) -> int:
    return connection.disk.size_bytes


def block_size(connection: Connection) -> tuple[int, int, int]:  # noqa: ARG001
    """Any size works (QEMU and blkid send 512 bytes whatever is said here); whole pages are what we
    are made for. Of the most, nbdkit keeps a locked buffer for each connection that asks for it."""
    return 1, PAGE_BYTES, MOST_REQUEST_BYTES


def can_write(connection: Connection) -> bool:
    return not connection.disk.read_only


def can_multi_conn(connection: Connection) -> bool:  # noqa: ARG001
    return True


def can_fast_zero(connection: Connection) -> bool:  # noqa: ARG001
    return True


def pread(connection: Connection, buf: memoryview, offset: int, flags: int) -> None:  # noqa: ARG001
    try:
        keep_thread()
        connection.disk.read(offset, buf)
        return
    except Exception as error:
        _failures.note("read", connection.disk.name, error)
    try:
        raise FAILED
    except RequestFailed:
        FAILED.__traceback__ = None
        raise


def pwrite(connection: Connection, buf: memoryview, offset: int, flags: int) -> None:  # noqa: ARG001
    try:
        keep_thread()
        connection.disk.write(offset, buf)
        return
    except Exception as error:
        _failures.note("write", connection.disk.name, error)
    try:
        raise FAILED
    except RequestFailed:
        FAILED.__traceback__ = None
        raise


def flush(connection: Connection, flags: int) -> None:  # noqa: ARG001
    try:
        keep_thread()
        connection.disk.flush()
        return
    except Exception as error:
        _failures.note("flush", connection.disk.name, error)
    try:
        raise FAILED
    except RequestFailed:
        FAILED.__traceback__ = None
        raise


def trim(connection: Connection, count: int, offset: int, flags: int) -> None:  # noqa: ARG001
    try:
        keep_thread()
        connection.disk.trim(offset, count)
        return
    except Exception as error:
        _failures.note("trim", connection.disk.name, error)
    try:
        raise FAILED
    except RequestFailed:
        FAILED.__traceback__ = None
        raise


def zero(connection: Connection, count: int, offset: int, flags: int) -> None:
    try:
        keep_thread()
        if connection.disk.zero(offset, count, bool(flags & nbdkit.FLAG_MAY_TRIM), bool(flags & nbdkit.FLAG_FAST_ZERO)):
            return
        nbdkit.set_error(errno.EOPNOTSUPP)  # zeros would have to be written: nbdkit takes that for a failure
        return
    except Exception as error:
        _failures.note("zero", connection.disk.name, error)
    try:
        raise FAILED
    except RequestFailed:
        FAILED.__traceback__ = None
        raise


def extents(connection: Connection, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    found = []
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    try:
        keep_thread()
        for start, length, zeros in connection.disk.extents(offset, count):
            found.append((start, length, hole if zeros else 0))
            if len(found) == MAX_EXTENTS or flags & nbdkit.FLAG_REQ_ONE:
                break
        return found
    except Exception as error:
        _failures.note("look for holes", connection.disk.name, error)
    try:
        raise FAILED
    except RequestFailed:
        FAILED.__traceback__ = None
        raise


def _warm_up_callbacks() -> None:
    """Run each request callback once, on disks of no consequence, so that none of its code is read
    from a disk when memory is short."""
    page = memoryview(bytearray(b"zcache" * 683)[:4096])
    for disk in scratch_disks(_server.config.allocator, bool(_server.config.clean)):
        connection = Connection(disk, False)
        for offset, data in ((0, page), (1, page[:100])):
            pwrite(connection, data, offset, 0)
            pread(connection, data, offset, 0)
            pread(connection, data, offset, 0)
        zero(connection, 4000, 96, 0)
        extents(connection, disk.size_bytes, 0, 0)
        flush(connection, 0)
        trim(connection, 8192, 0, 0)
    failures = Failures(nbdkit.set_error, lambda _: None, Clock())
    failures.note("write", DEVICE_NAME, StoreFull("(warming up)"))
    failures.say_counts(at_the_end=True)
    try:
        raise FAILED
    except RequestFailed as failure:
        traceback.format_exception(failure)
        FAILED.__traceback__ = None
