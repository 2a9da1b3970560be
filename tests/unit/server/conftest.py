"""What several tests of a server need."""

import os
from collections.abc import Iterator

import pytest

from zcache.image.signs import HEADER_BYTES


@pytest.fixture
def image() -> Iterator[int]:
    descriptor = os.memfd_create("image")
    os.truncate(descriptor, HEADER_BYTES)
    yield descriptor
    os.close(descriptor)
