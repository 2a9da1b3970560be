"""What becomes nbdkit: its words, and what it refuses before it does."""

import random
import subprocess
import sys

import pytest

from nbd_plugin.nbdkit_options import split_words
from nbd_plugin.serve import THREADS, command_line, names_a_place
from zcache.parameters import KEYS

#: As a keeper starts a server from disk; no limit leaves room for it.
REFUSED_BY_LIMITS = """
import os, sys
from nbd_plugin import serve
from zcache.errors import BadInput

def refuse(*_arguments, **_words):
    raise BadInput("there is no room")

def go_on(*_arguments):
    print("goes on", flush=True)
    os._exit(0)

serve.limits.check = serve.limits.check_promise = refuse
os.execvp = go_on
image = os.memfd_create("image")
os.ftruncate(image, int(sys.argv[1]))
os.environ["LISTEN_FDS"] = "1"
sys.argv = ["serve", "size=16M", f"image={image}", "standby=9"]
serve.main()
"""


@pytest.mark.parametrize(("image_bytes", "said"), [(4096, "goes on\n"), (0, "")])
def test_no_limit_refuses_a_successor_from_disk(image_bytes: int, said: str) -> None:
    """The pages are here already; but the first server is refused as one without a keeper is."""
    command = [sys.executable, "-c", REFUSED_BY_LIMITS, str(image_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == said and ("there is no room" in done.stderr) is (not said), done.stderr


def test_serve_tells_options_from_parameters() -> None:
    words = ["-U", "/a=b", "--filter", "delay", "--log=stderr", "-v", "size=1G", "rdelay=3"]
    assert split_words(words) == (words[:6], words[6:])
    assert command_line(["-t", "1", "size=1G"])[:4] == ["nbdkit", "-f", "-t", "1"]
    assert command_line(["size=1G"])[1:4] == ["-f", "-t", str(THREADS)]


@pytest.mark.parametrize("option", ["-U", "--unix=/s", "-p", "--port=1", "--vsock", "-s", "--help", "--version"])
def test_where_to_listen_is_said(option: str) -> None:
    assert names_a_place(["-f", option])
    assert not names_a_place(["-f", "-v", "-r", "--filter", "delay", "--run", "true"])


def test_random_words_never_reach_nbdkit_as_options(rng: random.Random) -> None:
    for _ in range(200):
        parameters = [f"{rng.choice(list(KEYS))}={rng.randrange(100)}" for _ in range(rng.randrange(4))]
        assert split_words(["-f", *parameters]) == (["-f"], parameters)
