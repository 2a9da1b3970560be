"""What a guest has the host do to an engine there: a line over the test VM's network, and a line
back once it is done.

Whoever is cut off from the engines is not from this: it has a port of its own. The guest asks from
a program whose memory is locked, as far as it can be; a line and its answer are all that it costs.

Locking: one order at a time, in a thread of the host's.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final

from zcache.testvm import HOST_ADDRESS

#: For the host to have done it, and a guest under emulation to hear of it.
ORDER_SECONDS: Final = 60.0
_DONE: Final = b"done\n"


@contextlib.contextmanager
def taking_orders(act: Callable[[str], None]) -> Iterator[int]:
    """The port, on the host's loopback, at which `act` is called for each order that comes."""
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_serve, args=(listener, act), daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # which ends its accept
        thread.join()
        listener.close()


def order(port: int, words: str, host: str = HOST_ADDRESS) -> None:
    """From the guest: have it done. Raises `OSError` if it was not."""
    with socket.create_connection((host, port), ORDER_SECONDS) as connection:
        connection.settimeout(ORDER_SECONDS)
        connection.sendall(words.encode() + b"\n")
        with connection.makefile("rb") as answers:
            answer = answers.readline()
    if answer != _DONE:
        raise OSError(f"the host did not {words!r}: {answer.decode(errors='replace').strip() or 'no answer'}")


def _serve(listener: socket.socket, act: Callable[[str], None]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            words = lines.readline().decode().strip()
            try:
                act(words)
            except Exception as error:  # whatever it was, the guest has to hear of it
                connection.sendall(f"{type(error).__name__}: {error}".encode())
            else:
                connection.sendall(_DONE)
