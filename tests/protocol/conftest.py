"""Hypothesis, as the codecs' tests use it: the same examples on every run, and no deadline on a loaded machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("edgefleet", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("edgefleet")
