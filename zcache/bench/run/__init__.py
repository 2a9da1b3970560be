"""`scripts/run`: real swap in the test VM."""
