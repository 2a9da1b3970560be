"""arm64 with pages of 4 and 16 KiB: real swap in an emulated machine, by any allocator and page
loop, through a server's death."""

import shutil

import pytest

from tests.vm.arm64 import PARAMETERS, heap_load, run
from tests.vm.arm64_root import KERNELS

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not shutil.which("qemu-system-aarch64"), reason="as root: apt-get install qemu-system-arm"),
]


@pytest.mark.parametrize("page_kib", KERNELS)
def test_a_guest_swaps_to_a_server_inside_it(page_kib: int) -> None:
    assert run(page_kib, PARAMETERS, heap_load(60)) == []


def test_frames_smaller_than_pages_a_budget_that_moves_and_servers_that_die() -> None:
    parameters = [word for word in PARAMETERS if not word.startswith("budget=")]
    assert (
        run(
            16,
            (*parameters, "budget=32M..96M", "allocator=zbud"),
            heap_load(90),
            disturb="kill:3:20",
            page_loop="python",
        )
        == []
    )
