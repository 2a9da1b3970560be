"""`scripts/bench remote`: a cold frame from an engine, beside one from a disk; and on paper."""
