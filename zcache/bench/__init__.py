"""Benchmarks, behind `scripts/bench`: `store` (in process) and `ablation` (what each protection is for). Each prints
a table and says what it compares with."""
