"""Tests of what the benchmarks decide and read; the measurements themselves are not tests."""
