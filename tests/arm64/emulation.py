"""A pytest plugin for the emulated run: leaves out, with its reason, what cannot pass or pay there, and tells numerics.

A deselection that fits no test of a file that was looked at is an error, so the list cannot rot.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import pytest
from hypothesis import settings

from tests.arm64.deselected import DESELECTED

MAX_EXAMPLES = 10
"""Of each property that asks for no number of its own: made in Python, examples cost far more than what they try."""

_left_out: dict[str, int] = {}


def chosen(node_ids: Sequence[str], patterns: Collection[str]) -> tuple[list[bool], list[str]]:
    """(whether each test runs, the patterns that fit nothing although their file was looked at)."""
    used = dict.fromkeys(patterns, 0)
    runs = []
    for node_id in node_ids:
        fitting = [pattern for pattern in patterns if fits(node_id, pattern)]
        for pattern in fitting:
            used[pattern] += 1
        runs.append(not fitting)
    files = {node_id.partition("::")[0] for node_id in node_ids}
    return runs, [pattern for pattern, count in used.items() if not count and pattern.partition("::")[0] in files]


def fits(node_id: str, pattern: str) -> bool:
    """Whether a pattern (a file, FILE::TEST, or with a star at its end) means this test, whatever its parameters."""
    return fnmatchcase(node_id.partition("[")[0], pattern) or node_id.startswith((f"{pattern}::", f"{pattern}["))


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """After tests/conftest.py has loaded its profile."""
    settings.register_profile("emulated", settings.get_profile("edgefleet"), max_examples=MAX_EXAMPLES)
    settings.load_profile("emulated")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect; raise when the list is out of date."""
    runs, unused = chosen([item.nodeid for item in items], DESELECTED)
    if unused:
        raise pytest.UsageError(f"tests/arm64/deselected.py names tests that are not there: {', '.join(unused)}")
    out = [item for item, is_run in zip(items, runs, strict=True) if not is_run]
    config.hook.pytest_deselected(items=out)
    for item in out:
        pattern = next(pattern for pattern in DESELECTED if fits(item.nodeid, pattern))
        _left_out[pattern] = _left_out.get(pattern, 0) + 1
    items[:] = [item for item, is_run in zip(items, runs, strict=True) if is_run]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the variants answered, and what was left out and why."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    notes = {str(value) for report in reports for name, value in getattr(report, "user_properties", ())
             if name == "numerics"}  # fmt: skip
    if notes:
        terminalreporter.section("numerics")
        for note in sorted(notes):
            terminalreporter.write_line(f"- {note}")
    if _left_out:
        terminalreporter.section("not run under emulation")
        for pattern, count in _left_out.items():
            terminalreporter.write_line(f"- {pattern} ({count}): {DESELECTED[pattern]}")
