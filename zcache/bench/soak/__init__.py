"""`scripts/bench soak`: hours of traffic, checked."""
