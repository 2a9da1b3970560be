"""Variables that a program inherits and that would change it, or what it starts: gone, whatever
they say.

Python's would have it run other code, or not start at all (PYTHONHOME); those of the loader, of
malloc and of OpenSSL reach into nbdkit. The locale says how Python spells names beyond ASCII:
nbdkit's, by the locale alone.
"""

import sys
from collections.abc import Mapping, MutableMapping
from typing import Final

LOCALE: Final = ("LC_ALL", "C.UTF-8")

_LOCALE: Final = ("LANG", "LC_")  # LANGUAGE, too
_PYTHON: Final = "PYTHON"
#: Which change nothing that matters, and are in many an image of a container.
_HARMLESS: Final = frozenset({"PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONNOUSERSITE", "PYTHONUNBUFFERED"})
#: What the C library and its loader read (ld.so(8), mallopt(3)), and OpenSSL.
_LIBRARIES: Final = ("LD_", "MALLOC_", "GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "NLSPATH", "OPENSSL_")
#: What shells that are started read.
_SHELL: Final = ("BASH_ENV", "ENV")


def clean(environment: MutableMapping[str, str]) -> bool:
    """Take them away. Whether this process has been changed by any already, and has to be run once
    more."""
    is_wrong = is_changed(environment)
    for name in list(environment):
        is_python = name.startswith(_PYTHON) and name not in _HARMLESS
        if is_python or name.startswith((*_LOCALE, *_LIBRARIES)) or name in _SHELL:
            del environment[name]
    environment[LOCALE[0]] = LOCALE[1]
    return is_wrong


def is_changed(environment: Mapping[str, str]) -> bool:
    """Whether a Python with this environment is another one than it would be."""
    if sys.getfilesystemencoding() != "utf-8" or any(name.startswith(_LIBRARIES) for name in environment):
        return True
    is_read = not sys.flags.ignore_environment
    return is_read and any(name.startswith(_PYTHON) and name not in _HARMLESS for name in environment)
