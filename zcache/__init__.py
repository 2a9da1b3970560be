"""zcache: a compressed page store, and what it takes to swap to it."""
