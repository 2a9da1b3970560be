"""NumPy's arrays in a region, by its allocation hook."""

import gc
import random
import shutil
import threading
from typing import Any

import pytest

from tests.support.regions import MIB, needs_regions, run
from zcache.errors import BadInput, EnvironmentProblem
from zcache.pager.region import Region

numpy = pytest.importorskip("numpy")

pytestmark = [
    needs_regions,
    pytest.mark.skipif(not shutil.which("cc"), reason="NOT run: no C compiler"),
]


def is_inside(region: Region, array: Any) -> bool:
    start = numpy.frombuffer(region.buffer, dtype="uint8").ctypes.data
    return bool(start <= array.ctypes.data < start + len(region))


def test_large_arrays_lie_in_the_region_and_small_ones_do_not() -> None:
    with Region("64M", "8M") as region:
        with region.numpy(threshold="256K"):
            large, small = numpy.ones(MIB), numpy.ones(100)
            objects = numpy.empty(10, dtype=object)
        outside = numpy.ones(MIB)
        assert is_inside(region, large) and not is_inside(region, small) and not is_inside(region, outside)
        assert not is_inside(region, objects) and large.sum() == MIB
        assert region.numpy_bytes == (8 * MIB, 8 * MIB)
        with pytest.raises(BadInput):
            region.array(10)
        del large
        assert region.numpy_bytes == (0, 8 * MIB)
        with pytest.raises(BufferError):
            region.close()
        assert region.numpy_bytes == (0, 8 * MIB)
        del small, objects


def test_a_job_larger_than_the_limit() -> None:
    """The same, bit for bit, as without."""

    def job() -> list[Any]:
        numbers = numpy.random.default_rng(7).integers(0, 1 << 40, 2 * MIB)
        ordered = numpy.sort(numbers)
        groups = numpy.bincount((numbers % 1000).astype("int64"), weights=numbers.astype("float64"))
        doubled = numpy.zeros(2 * MIB)
        doubled += numbers
        return [ordered, groups, doubled, numbers.sum()]

    wanted = job()
    with Region("192M", "16M") as region:
        with region.numpy():
            found = job()
        assert all(numpy.array_equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert region.resident_bytes <= 16 * MIB < region.numpy_bytes[1]
        del found
        gc.collect()
        assert region.numpy_bytes[0] == 0


def test_what_is_free_reads_as_zeros() -> None:
    with Region("16M", "4M") as region, region.numpy("64K"):
        for _ in range(20):
            dirty = numpy.full(MIB, 3.5)
            del dirty
            clean = numpy.zeros(MIB)
            assert is_inside(region, clean) and not clean.any()
            del clean


def test_arrays_that_grow() -> None:
    with Region("64M", "4M") as region, region.numpy("64K"):
        array = numpy.arange(1000, dtype="int64")
        for count in (10_000, 100_000, 50_000, 400_000, 10, 300_000):
            before = array.copy()
            array.resize(count, refcheck=False)
            kept = min(len(before), count)
            assert (array[:kept] == before[:kept]).all()
            array[:] = numpy.arange(count)
        assert is_inside(region, array)
        del array, before


def test_what_does_not_fit_goes_elsewhere() -> None:
    with Region("8M", "2M") as region, region.numpy():
        arrays = [numpy.full(256 * 1024, number, dtype="int64") for number in range(8)]
        assert [is_inside(region, array) for array in arrays] == [True] * 4 + [False] * 4
        assert all((array == number).all() for number, array in enumerate(arrays))
        arrays.clear()


def test_a_region_that_is_closed_says_so() -> None:
    with Region("8M", "2M") as region:
        pass
    with pytest.raises(EnvironmentProblem, match="the region is closed"):
        region.array(3)
    with pytest.raises(EnvironmentProblem, match="the region is closed"), region.numpy():
        pass


def test_one_threshold_for_a_region() -> None:
    with Region("8M", "2M") as region:
        with region.numpy("64K"):
            pass
        with pytest.raises(BadInput, match="threshold=1M: it was 65536 bytes before"), region.numpy():
            pass
        with region.numpy(1 << 16):
            pass


def test_threads_at_once(seed: int) -> None:
    wrong: list[int] = []
    with Region("64M", "4M") as region:

        def work(number: int) -> None:
            own = random.Random(seed + number)
            held: list[tuple[int, Any]] = []
            with region.numpy("64K"):
                for turn in range(300):
                    held.append((turn, numpy.full(own.randrange(8192, 60_000), turn, dtype="int64")))
                    if len(held) > 6:
                        value, array = held.pop(own.randrange(len(held)))
                        if not (array == value).all():
                            wrong.append(number)
                            return

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        gc.collect()
        assert region.numpy_bytes[0] == 0


def test_arrays_outlive_the_region_object() -> None:
    region = Region("16M", "4M")
    with region.numpy():
        array = numpy.full(MIB, 1.25)
    del region
    assert (array == 1.25).all()


def test_what_was_there_before_is_no_part_of_an_array() -> None:
    with Region("16M", "4M") as region:
        region.buffer[:] = b"x" * len(region)
        with region.numpy():
            zeros = numpy.zeros(MIB)
            assert is_inside(region, zeros) and not zeros.any()
        del zeros


def test_a_child_that_drops_an_array_leaves_it_to_its_parent() -> None:
    done = run(
        "import numpy\n"
        "region = Region('16M', '4M')\n"
        "with region.numpy():\n"
        "    array = numpy.ones(1 << 17)\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        del array\n"
        "        other = numpy.full(1 << 18, 2.0)\n"
        "        os._exit(0 if other.sum() == 1 << 19 else 1)\n"
        "print(os.waitpid(child, 0)[1], int(array.sum()))\n"
    )
    assert done.stdout == f"0 {1 << 17}\n", done


def test_signals_while_arrays_are_freed() -> None:
    done = run(
        "import numpy\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "region = Region('64M', '8M')\n"
        "with region.numpy('64K'):\n"
        "    signal.setitimer(signal.ITIMER_REAL, 7e-4, 7e-4)\n"
        "    for turn in range(150):\n"
        "        array = numpy.full(1 << 17, float(turn))\n"
        "        other = array.copy()\n"
        "        assert (array == turn).all() and (other == turn).all(), turn\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "    del array, other\n"
        "print(region.numpy_bytes[0])\n"
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done
