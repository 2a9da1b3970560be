"""The image: what of a store outlives the server process, in one memfd.

The page table, each frame's homes, birth and seal, and the RAM slots. All else (states, live
counts, queues, free lists, slot maps, statistics) follows from them and is rebuilt
(`zcache.server.rebuild`). A server may be killed between any two instructions; what makes the image
whole at each of them is the order in which the store writes:

- words are published whole, by one store each (`zcache.image.whole_words`);
- a zpage's bytes are in place before the entry that names them; an entry is cleared before its room
  is used again;
- a frame's seal and birth are written before the `below` or `home` that they belong to; a RAM slot
  stops being one frame's home before it is another's.

Layout: a header of 4 KiB, then the sections. Header and sections each begin a page of the kernel's
(`zcache.linux.kernel_page`), for each is mapped by itself. The header is one line of JSON (format,
geometry, the key of all that leaves RAM), written once before the image is used. Its last words are
what server, keeper and swap-upgrade tell each other while they run (`Signs`). A format that is not
ours is refused, never guessed at.
"""

import errno
import fcntl
import json
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from zcache.errors import BadInput, EnvironmentProblem
from zcache.image.signs import HEADER_BYTES, JSON_BYTES, Signs
from zcache.linux import libc
from zcache.linux.kernel_page import KERNEL_PAGE_BYTES, page_end

FORMAT: Final = 3

#: A birth is one word, of an epoch and a count: 44 bits count 100,000 frames a second for five
#: years, and leave epochs for a million servers.
EPOCH_SHIFT: Final = 44
MAX_EPOCH: Final = (1 << 64 - EPOCH_SHIFT) - 1

#: The key, and a frame's seal with `encrypt=` no and yes: a CRC-32, or the tag of AES-GCM.
SECRET_BYTES: Final = 32
SEAL_BYTES: Final = {"no": 4, "yes": 16}

#: What is known of copies that engines hold (`zcache.remote.tables`): of each slot its generation,
#: its holders and its frame's tail; and of the engines' incarnations.
REMOTE_SECTIONS: Final = ("remote_generation", "remote_holders", "remote_tail", "remote_incarnations")

#: What is allocated between two signs of life: some 10 ms of memory; up to 6 s of a file, where
#: that has to be written (vfat, NFSv3), on a card that takes 10 MB/s.
ALLOCATED_BYTES: Final = 64 << 20

#: What `os.memfd_create` is given: shows in /proc/PID/fd and maps.
NAME: Final = "zcache-image"


class Geometry(NamedTuple):
    """What fixes the layout, and what a server must agree with to go on with an image. Counts of
    pages, frames and RAM slots; `encrypt` is yes or no."""

    page_count: int
    slot_count: int
    frame_count: int
    frame_bytes: int
    encrypt: str
    allocator: str
    backing: str | None
    remote_slots: int = 0  # that engines may hold copies of

    def sections(self) -> dict[str, int]:
        """Bytes of each section, in the order in which they lie."""
        ids = self.frame_count + 1
        return {
            "entries": 8 * self.page_count,
            "home": 4 * ids,
            "below": 4 * ids,
            "seal": SEAL_BYTES[self.encrypt] * ids,
            "birth": 8 * ids,
            **self._remote_sections(),
            "ram": self.slot_count * self.frame_bytes,
        }

    def _remote_sections(self) -> dict[str, int]:
        """What `zcache.remote.tables` keeps; nothing without engines."""
        if not self.remote_slots:
            return {}
        ids = self.remote_slots + 1
        return dict(zip(REMOTE_SECTIONS, (4 * ids, 2 * ids, 16 * ids, 8192), strict=True))


class Image:
    """A memfd with that layout. `new` makes one in an empty memfd; `attach` goes on with what a
    predecessor left."""

    signs: Signs

    def __init__(self, descriptor: int, geometry: Geometry, page_bytes: int = KERNEL_PAGE_BYTES) -> None:
        self.descriptor = descriptor
        self._page_bytes = page_bytes
        self.spans: dict[str, tuple[int, int]] = {}
        offset = page_end(HEADER_BYTES, page_bytes)
        for name, size_bytes in geometry.sections().items():
            self.spans[name] = offset, size_bytes
            offset = page_end(offset + size_bytes, page_bytes)
        self.size_bytes = offset

    @classmethod
    def open(cls, descriptor: int, geometry: Geometry, page_bytes: int = KERNEL_PAGE_BYTES) -> "Image":
        """`new` for an empty memfd, `attach` for any other."""
        return (cls.attach if os.fstat(descriptor).st_size else cls.new)(descriptor, geometry, page_bytes)

    @classmethod
    def new(cls, descriptor: int, geometry: Geometry, page_bytes: int = KERNEL_PAGE_BYTES) -> "Image":
        """Lay out an empty memfd; raises `BadInput` if the path of the backing is too long."""
        image = cls(descriptor, geometry, page_bytes)
        fields = {"zcache image format": FORMAT, **geometry._asdict(), "secret": os.urandom(SECRET_BYTES).hex()}
        header = json.dumps(fields).encode() + b"\n"
        if len(header) > JSON_BYTES:
            raise BadInput(
                f"parameters of {len(header)} bytes, the image has room for {JSON_BYTES}; give a shorter path"
            )
        os.ftruncate(descriptor, image.size_bytes)
        image.signs = Signs(descriptor)
        image.signs.begin_epoch()
        os.pwrite(descriptor, header, 0)  # last: an image without a header was never used
        return image

    @classmethod
    def attach(cls, descriptor: int, geometry: Geometry, page_bytes: int = KERNEL_PAGE_BYTES) -> "Image":
        """Go on with an image; raises `EnvironmentProblem`, and has changed nothing, if it is not
        ours to read."""
        check_header(read_header(descriptor), geometry)
        image = cls(descriptor, geometry, page_bytes)
        image.signs = Signs(descriptor)
        if image.epoch >= MAX_EPOCH:
            raise EnvironmentProblem(f"the image has had {MAX_EPOCH} servers; take the swap off and on again")
        image.signs.begin_epoch()
        return image

    def allocate_tables(self, go_on: Callable[[], None]) -> None:
        """Have memory for all sections but that of the RAM slots, rather than find out later, when
        one is touched, that there is none (SIGBUS). `go_on` is called on the way. Raises
        `OSError`."""
        for name, (offset, size_bytes) in self.spans.items():
            if name != "ram":
                for start in range(offset, offset + size_bytes, ALLOCATED_BYTES):
                    length = min(ALLOCATED_BYTES, offset + size_bytes - start)
                    try:
                        libc.fallocate(self.descriptor, libc.FALLOC_FL_KEEP_SIZE, start, length)
                    except OSError as error:  # a file of memory says that its disk is full
                        number = errno.ENOMEM if error.errno == errno.ENOSPC else error.errno
                        raise OSError(number, os.strerror(number or 0)) from None
                    go_on()

    @property
    def epoch(self) -> int:
        """How many servers have used the image, this one included."""
        return self.signs.epoch

    @property
    def secret(self) -> bytes:
        """32 random bytes, made with the image."""
        return bytes.fromhex(read_header(self.descriptor)["secret"])

    def section(self, name: str) -> "Section":
        """A section's memory, shared with whoever else has the image."""
        return Section(self.descriptor, *self.spans[name], self._page_bytes)


class Section:
    """`size_bytes` of an image, mapped."""

    def __init__(self, descriptor: int, offset: int, size_bytes: int, page_bytes: int = KERNEL_PAGE_BYTES) -> None:
        self.memory = mmap.mmap(descriptor, max(size_bytes, 1), offset=offset)
        self.page_bytes = page_bytes
        self._descriptor = descriptor
        self._offset = offset
        self._stop = offset + size_bytes

    def discard(self, start: int, stop: int) -> None:
        """Give whole pages of the kernel's back to the system, the last one of the section to its
        end; whoever has them mapped or locked. They are zero when they are touched again."""
        mode = libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE
        libc.fallocate(self._descriptor, mode, self._offset + start, page_end(stop, self.page_bytes) - start)

    def allocate(self, start: int, stop: int) -> None:
        """Have memory there. Waits for it; raises `OSError` if there is none."""
        libc.fallocate(self._descriptor, 0, self._offset + start, stop - start)

    def touched(self) -> Iterator[tuple[int, int]]:
        """The parts that were ever written, as byte offsets, in whole pages of the kernel's: the
        rest is zero, and reading it would take memory."""
        start = self._offset
        while start < self._stop:
            try:
                start = os.lseek(self._descriptor, start, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end of the image
                return
            stop = min(os.lseek(self._descriptor, start, os.SEEK_HOLE), self._stop)
            if start < stop:
                yield start - self._offset, stop - self._offset
            start = stop


def read_header(descriptor: int) -> dict[str, Any]:
    """What an image says of itself; raises `EnvironmentProblem` if this version cannot read it."""
    header = os.pread(descriptor, JSON_BYTES, 0).partition(b"\n")[0]
    try:
        fields: dict[str, Any] = json.loads(header)
        image_format = fields.pop("zcache image format")
    except (ValueError, KeyError, AttributeError):
        raise EnvironmentProblem("the image is not one of zcache's; take the swap off and on again") from None
    if image_format != FORMAT:
        raise EnvironmentProblem(
            f"the image has format {image_format}, this version reads format {FORMAT}; "
            "go on with the version that made it, or take the swap off and on again"
        )
    return fields


def check_header(fields: dict[str, Any], geometry: Geometry) -> None:
    """Raises `EnvironmentProblem` if an image that says this of itself was made for something
    else."""
    for name, value in geometry._asdict().items():
        # A header that is older than a field says nothing of it: there was none of that then.
        if fields.get(name, Geometry._field_defaults.get(name)) != value:
            raise EnvironmentProblem(
                f"the image was made with {name} {fields.get(name)}, not {value}; give the same parameters"
            )


def is_image(descriptor: int) -> bool:
    """Whether it is a memfd that cannot shrink; raises `OSError` if it is not even a file in
    memory."""
    return bool(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)


def of_process(pid: int) -> int:
    """A descriptor of the image that a process holds: a keeper, or a server. Raises
    `EnvironmentProblem` if it has none."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if str(link.readlink()).startswith(f"/memfd:{NAME}"):
            return os.open(link, os.O_RDWR | os.O_CLOEXEC)
    raise EnvironmentProblem(f"process {pid} has no image")


def new_descriptor() -> int:
    """An empty memfd that cannot shrink under those who have it mapped; inherited by nobody who is
    not given it."""
    descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor
