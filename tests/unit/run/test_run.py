"""`zcache run`: a job that knows nothing of zcache, and its NumPy arrays in a region."""

import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from tests.support.regions import REPOSITORY, needs_regions
from zcache.pager.region import Region

pytest.importorskip("numpy")
pytestmark = needs_regions

COMMAND = [sys.executable, "-m", "zcache.run.run"]
NAME = "getattr(np, '_core', None) or np.core"


def run(folder: Path, options: list[str], *job: str) -> "subprocess.CompletedProcess[str]":
    """With temporary files in that folder, of which nothing is left."""
    words = [*COMMAND, *options, "--", *job]
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment, cwd=REPOSITORY, check=False, timeout=120
    )
    assert not list(folder.glob("zcache-run-*"))
    return done


def python(text: str) -> list[str]:
    return [sys.executable, "-c", "import json, os, sys, time\nimport numpy as np\n" + text]


def test_a_job_larger_than_its_limit_and_its_threads(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        ["--limit", "8M", "--size", "200M", "codec=zstd"],
        *python(
            "from concurrent.futures import ThreadPoolExecutor\n"
            f"name = ({NAME}).multiarray.get_handler_name\n"
            "a = np.arange(4_000_000, dtype='i8')[::-1].copy()\n"
            "assert name(a) == 'zcache region' and a.nbytes > 3 * 8 << 20\n"
            "with ThreadPoolExecutor(3) as pool:\n"
            "    parts = list(pool.map(lambda i: np.sort(a[i::3]), range(3)))\n"
            "assert all(name(part) == 'zcache region' for part in parts)\n"
            "assert [int(part[1]) for part in parts] == [3, 5, 4], parts\n"
            "rss = [l for l in open('/proc/self/status') if l.startswith('RssAnon')][0].split()[1]\n"
            "print(int(a.sum()), int(np.concatenate(parts).sum()), int(rss) < 60_000)\n"
        ),
    )
    assert done.returncode == 0, done
    assert done.stdout.split() == [str(sum(range(4_000_000)))] * 2 + ["True"]
    first, second, third = done.stderr.splitlines()
    assert "arrays of up to " in first and "at most 8.0M uncompressed" in first
    assert int(second.split("faults: ")[1]) > 100 and "not covered by the limit: up to" in third


@pytest.mark.parametrize(
    ("job", "status"), [(["sh", "-c", "exit 3"], 3), (["sh", "-c", "kill -9 $$"], 137), (["true"], 0)], ids=str
)
def test_the_exit_status_is_the_jobs(tmp_path: Path, job: list[str], status: int) -> None:
    done = run(tmp_path, ["--limit", "8M"], *job)
    assert done.returncode == status
    assert ("no array was in a region" if status < 128 else "the job was ended by SIGKILL") in done.stderr


def test_a_job_that_looks_for_numpy_before_it_imports_it(tmp_path: Path) -> None:
    text = (
        "import importlib.util, sys\n"
        "assert importlib.util.find_spec('numpy').origin and 'numpy' not in sys.modules\n"
        "import numpy as np\nfrom importlib import resources\n"
        "assert type(np.__spec__.loader).__name__ == 'SourceFileLoader' and resources.files('numpy').is_dir()\n"
        f"print(({NAME}).multiarray.get_handler_name(np.ones(1_000_000)))\n"
    )
    done = run(tmp_path, ["--limit", "4M"], sys.executable, "-c", text)
    assert done.returncode == 0 and done.stdout == "zcache region\n", done


def test_the_job_has_what_it_would_have_had(tmp_path: Path) -> None:
    """Descriptors, ignored signals, and what it leaves running."""
    look = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])"
    done = run(tmp_path, ["--limit", "8M"], sys.executable, "-S", "-c", look)
    plain = subprocess.run([sys.executable, "-S", "-c", look], capture_output=True, text=True, check=False)
    assert done.stdout == plain.stdout
    words = ["nohup", *COMMAND, "--limit", "8M", "--", "grep", "SigIgn", "/proc/self/status"]
    ignored = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, check=False).stdout
    assert int(ignored.split()[1], 16) & 1
    later = f"(sleep 2; {sys.executable} -c 'import numpy; print(numpy.ones(1000000).sum())') &"
    words = [*COMMAND, "--limit", "8M", "--", "sh", "-c", later]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=60)
    assert done.stdout == "1000000.0\n" and "zcache run has ended: process" in done.stderr, done


def test_a_signal_before_the_job_has_begun(tmp_path: Path) -> None:
    words = [*COMMAND, "--limit", "4M", "--", "touch", str(tmp_path / "begun")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, env=environment, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 20
        while not list(tmp_path.glob("zcache-run-*/pager")):  # its signals are handled just after that
            assert time.monotonic() < end
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert not (tmp_path / "begun").exists() and not list(tmp_path.glob("zcache-run-*"))


def test_what_the_limit_does_not_cover_is_said(tmp_path: Path) -> None:
    """An array that is larger than the region is in ordinary memory."""
    job = python("a = np.ones(9_000_000)\nb = np.ones(1_000_000)\nprint(a.sum(), b.sum())")
    done = run(tmp_path, ["--limit", "4M"], *job)
    assert done.returncode == 0 and done.stdout.split() == ["9000000.0", "1000000.0"]
    assert "an array of 72000000 bytes does not fit in what is left of the region" in done.stderr


def test_a_store_that_is_full_is_said_to_be_why_the_job_ended(tmp_path: Path) -> None:
    job = python("a = np.random.default_rng(1).random(3_000_000)")
    done = run(tmp_path, ["--limit", "4M", "budget=8M"], *job)
    assert done.returncode == 128 + signal.SIGBUS
    assert "a region's store is full" in done.stderr
    assert "ended by SIGBUS, for the store was full: give a larger budget=, or backing=PATH" in done.stderr


def test_a_backing_is_as_large_as_it_has_to_be_and_does_not_stay(tmp_path: Path) -> None:
    job = python("a = np.random.default_rng(1).random(3_000_000)\nprint(a.size)")
    backing = tmp_path / "cold"
    done = run(tmp_path, ["--limit", "4M", "budget=8M", f"backing={backing}"], *job)
    assert done.returncode == 0 and done.stdout == "3000000\n", done
    assert not backing.exists()
    with Region("8M", "1M", backing=backing, budget="4M", overcommit="yes"):  # which leaves a small one
        pass
    done = run(tmp_path, ["--limit", "4M", "budget=8M", f"backing={backing}"], *job)
    assert (done.returncode, done.stdout) == (0, "3000000\n") or "backing" in done.stderr.splitlines()[-1], done
    assert backing.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--limit", "8M", "colour=red"], "colour=red: unknown parameter"),
        (["--limit", "8M", "codec=middle-out"], "codec=middle-out"),
        (["--limit", "much"], "--limit=much: not a number of bytes"),
        (["--limit", "8K"], "--limit=8K: give at least 1M for each process (--processes=1)"),
        (["--limit", "4M", "--processes", "5"], "--limit=4M: give at least 1M for each process (--processes=5)"),
        (["--limit", "8M", "--size", "8M"], "all of it fits within --limit=8M"),
        (["--limit", "8M", "--threshold", "x"], "--threshold=x"),
        (["--limit", "8M", "--processes", "0"], "give at least 1"),
        ([], "--limit"),
    ],
    ids=str,
)
def test_it_refuses_in_a_line_and_starts_nothing(tmp_path: Path, options: list[str], said: str) -> None:
    done = run(tmp_path, options, "touch", str(tmp_path / "started"))
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1], done
    assert not (tmp_path / "started").exists()


def test_a_job_that_cannot_be_started(tmp_path: Path) -> None:
    done = run(tmp_path, ["--limit", "8M"], "no-such-program")
    assert done.returncode == 2 and done.stderr == "zcache run: no-such-program: No such file or directory\n"
    done = subprocess.run([*COMMAND, "--limit", "8M"], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 2 and "give the job behind --" in done.stderr


def test_a_python_that_has_nothing_of_zcaches_and_a_sitecustomize_of_its_own(tmp_path: Path) -> None:
    venv.create(tmp_path / "other", with_pip=False)
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import sys; sys.is_own = True\n")
    (own / "numpy.py").write_text("raise ImportError('none here')\n")
    text = (
        "import sys, os, zcache.pager.region\n"
        "try:\n    import lz4\nexcept ImportError: print('no lz4')\n"
        "try:\n    import numpy\nexcept ImportError as error: print(error)\n"
        "print(sys.is_own, 'site-packages' in ''.join(sys.path))\n"
    )
    other = str(tmp_path / "other/bin/python")
    words = ["env", f"PYTHONPATH={own}", *COMMAND, "--limit", "8M", "--", other, "-c", text]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60)
    assert done.returncode == 0 and done.stdout.split("\n")[:3] == ["no lz4", "none here", "True True"], done


def test_its_pager_is_killed_and_the_job_ends_as_it_would_have(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        ["--limit", "4M"],
        *python(
            "import signal\nfrom zcache.control.ask import ask\n"
            "control = json.loads(os.environ['ZCACHE_RUN'])['pager'] + '.control'\n"
            "a = np.arange(2_000_000, dtype='i8')\n"
            "for _ in range(3):\n"
            "    from pathlib import Path\n"
            "    os.kill(ask(Path(control), 'status')['pid'], signal.SIGKILL)\n"
            "    a += 1\n"
            "    b = a * 2\n"
            "    time.sleep(0.5)\n"
            "print(int(a.sum()), int(b.sum()))\n"
        ),
    )
    total = sum(range(3, 2_000_003))
    assert done.returncode == 0 and done.stdout.split() == [str(total), str(2 * total)], done
    assert done.stderr.count("the pager has died (status -9): the next one goes on") == 3


def test_a_job_whose_keeper_gives_up_is_sigbus_and_does_not_wait(tmp_path: Path) -> None:
    """No successor can be made, say, as there is no memory."""
    late, pager = tmp_path / "late", tmp_path / "pager.py"
    pager.write_text(
        f"import os, sys\nif os.path.exists({str(late)!r}):\n    sys.exit(3)\n"
        "from zcache.pager.worker import main\nmain(int(sys.argv[1]))\n"
    )
    command = (
        "import sys\nfrom zcache.pager import keeper\nfrom zcache.run import run\n"
        f"keeper.PAGER[:] = [sys.executable, {str(pager)!r}]\n"
        "sys.exit(run.main(sys.argv[1:]))"
    )
    job = python(
        "import signal\nfrom pathlib import Path\nfrom zcache.control.ask import ask\n"
        "control = Path(json.loads(os.environ['ZCACHE_RUN'])['pager'] + '.control')\n"
        "a = np.ones(2_000_000)\n"
        f"Path({str(late)!r}).touch()\n"
        "os.kill(ask(control, 'status')['pid'], signal.SIGKILL)\n"
        "print(a.sum())\n"
    )
    words = [sys.executable, "-c", command, "--limit", "4M", "--", *job]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (128 + signal.SIGBUS, ""), done
    assert "zcache run: 5 times in a row a pager has ended at once; the last one has died (status 3)" in done.stderr
    assert "zcache run: the job was ended by SIGBUS\n" in done.stderr


def test_processes_that_share_the_limit(tmp_path: Path) -> None:
    """As many as were said; the next ones say that they have none of it."""
    script = tmp_path / "job.py"
    script.write_text(
        "import multiprocessing, numpy as np, time\n"
        "def work(number):\n"
        "    array = np.full(2_000_000, number)\n"
        "    time.sleep(1)\n"
        f"    return int(array.sum()), ({NAME}).multiarray.get_handler_name(array)\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(3) as pool:\n"
        "        for total, name in pool.map(work, range(3), 1):\n"
        "            print(total, name)\n"
    )
    done = run(tmp_path, ["--limit", "10M", "--processes", "3"], sys.executable, str(script))
    assert done.returncode == 0, done
    totals, names = zip(*(line.split(maxsplit=1) for line in done.stdout.splitlines()), strict=True)
    assert totals == ("0", "2000000", "4000000")
    assert sorted(names) == ["default_allocator", "zcache region", "zcache region"]
    assert done.stderr.count("is not limited: others of the job have all") == 1


def test_a_child_by_fork_makes_arrays_of_its_own_in_ordinary_memory(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        ["--limit", "4M"],
        *python(
            "a = np.ones(1_000_000)\n"
            "pid = os.fork()\n"
            "if not pid:\n"
            "    b = np.ones(1_000_000) * 2\n"
            "    os._exit(int(b.sum() != 2_000_000))\n"
            "print(os.waitpid(pid, 0)[1], a.sum())\n"
        ),
    )
    assert done.returncode == 0 and done.stdout.split() == ["0", "1000000.0"], done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_signal_to_it(tmp_path: Path, number: int) -> None:
    """SIGTERM is for the job. Whatever happens to it, the job loses nothing."""
    job = python(
        "import signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('told', flush=True))\n"
        "a = np.ones(2_000_000)\nprint('ready', flush=True)\n"
        "end = time.monotonic() + 1.5\n"
        "while time.monotonic() < end: a += 1; a -= 1\n"
        "print(a.sum(), flush=True)\n"
    )
    words = [*COMMAND, "--limit", "4M", "--", *job]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        said = process.stdout.read()
        assert said == ("told\n" if number == signal.SIGTERM else "") + "2000000.0\n"
        assert process.wait(20) == (0 if number == signal.SIGTERM else -number)
    end = time.monotonic() + 20
    while any(f"{tmp_path}" in _command_line(entry) for entry in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < end
        time.sleep(0.05)


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
