"""Benchmarks, behind `scripts/bench`: `store` (in process). Each prints a table and says what it compares with."""
