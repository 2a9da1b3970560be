"""`scripts/bench store`: the store alone, in this process."""
