"""zcache: a compressed page store, and what it takes to swap to it."""

#: Of what is installed, or lies here: pyproject.toml reads it, too.
__version__ = "0.2.0"
