"""The table of parameters, and what is made from it: the parser, `zcache set`, and help."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stores import settings_of, small_store
from zcache.allocators.choice import ALLOCATORS
from zcache.errors import BadInput, SwapError
from zcache.keeper.launch import check_parameters
from zcache.parameters import DEFAULTS, FOR_PEOPLE, KEYS, LIVE_KEYS, PARAMETERS, help_of_set, help_text
from zcache.server.config import HARDENING, parse_config
from zcache.store.admission import ADMIT

REPOSITORY = Path(__file__).resolve().parents[2]


def test_each_key_has_one_row_and_a_use() -> None:
    keys = [parameter.key for parameter in PARAMETERS]
    assert len(set(keys)) == len(keys)
    for parameter in PARAMETERS:
        assert parameter.form and "%" not in parameter.form, parameter.key  # argparse would take it for its own
        assert parameter.meaning or parameter.live, parameter.key
        assert parameter.meaning or not parameter.default, parameter.key


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_default_is_what_the_parser_takes(key: str) -> None:
    words = [("size", "64M"), ("budget", "64M"), ("overcommit", "yes")]
    words = [word for word in words if word[0] != key]
    given, left = parse_config([*words, (key, DEFAULTS[key])]), parse_config(words)
    assert given.codec.name == left.codec.name
    assert given._replace(codec=left.codec) == left


def test_forms_name_the_choices_that_there_are() -> None:
    forms = {parameter.key: set(re.findall(r"\w+", parameter.form)) - {"or"} for parameter in PARAMETERS}
    assert forms["allocator"] == set(ALLOCATORS)
    assert forms["admit"] == set(ADMIT)
    assert forms["hardening"] == set(HARDENING)


def test_what_can_be_set_is_what_a_live_server_takes() -> None:
    """Each is known to it: what it refuses is the value."""
    settings = settings_of(small_store())
    for key in LIVE_KEYS:
        with pytest.raises(BadInput, match=rf"^{key}=\?: (?!no such setting)"):
            settings.set(f"{key}=?")
    with pytest.raises(BadInput, match=r"^size=1M: no such setting; give budget=, low_watermark=, high_watermark=, "):
        settings.set("size=1M")


def test_help_has_what_people_may_give_and_nothing_else() -> None:
    shown = re.findall(r"^  (\w+)=", help_text(), re.MULTILINE)
    assert tuple(shown) == FOR_PEOPLE
    assert set(KEYS) - set(shown) == {"image", "standby"}, "the keeper's"
    assert max(map(len, help_text().splitlines())) <= 100
    assert help_of_set().count("=") == len(LIVE_KEYS)


@pytest.mark.parametrize("module", ["nbd_plugin.serve", "zcache.swap.up"])
def test_commands_print_it(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, "--help"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    keys = [key for key in FOR_PEOPLE if key != "control" or module != "zcache.swap.up"]  # which chooses that
    assert help_text(keys) in done.stdout
    assert module != "nbd_plugin.serve" or "nbdkit --help" in done.stdout


@pytest.mark.parametrize("word", ["remot=redis://u:PASSWORD@h", "remote=redis://u:PASS@WORD@h:port"])
def test_a_refusal_repeats_no_password_of_a_url(word: str) -> None:
    key, _, value = word.partition("=")
    with pytest.raises(BadInput) as refused:
        parse_config([("size", "64M"), ("budget", "64M"), (key, value)])
    assert "WORD" not in str(refused.value) and "PASS" not in str(refused.value)
    with pytest.raises(SwapError) as mistaken:
        check_parameters([value])
    assert "WORD" not in str(mistaken.value)
