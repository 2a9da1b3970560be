"""Benchmarks, behind `scripts/bench`: `store` (in process), `ablation` (what each protection is
for) and `soak` (does the server grow). Each prints a table and says what it compares with."""
