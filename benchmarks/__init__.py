"""Benchmarks by permanent id. `python -m benchmarks R5 --json`."""
