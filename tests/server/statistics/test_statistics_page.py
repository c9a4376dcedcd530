"""docs/statistics.md: its code runs, and every function it names is there."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fleet_server.statistics
from tests.docs.blocks import Document, python

PAGE = Document("docs/statistics.md")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("mean_interval", r"gate 0\.0\d+ to 0\.0\d+: (pass|wait)"),
        ("compare_groups", r"moved \[3\] \[3\]"),
        ("is_alarm", r"alarm True since batch 3"),
        ("devices_needed", r"\d+ devices an arm"),
    ],
)
def test_the_pages_examples_run(block: str, said: str, tmp_path: Path) -> None:
    assert re.search(said, python(PAGE.block(block), tmp_path))


def test_every_function_in_the_table_is_there() -> None:
    named = set()
    for row in re.findall(r"^\|(.*)\|$", PAGE.text, re.MULTILINE):
        cells = row.split("|")
        module = None
        for name in re.findall(r"`([A-Za-z_0-9.]+)`", cells[1]):
            if "." in name:
                module = importlib.import_module(f"fleet_server.statistics.{name.partition('.')[0]}")
                named.add(module.__name__.rpartition(".")[2])
            assert module is not None and hasattr(module, name.rpartition(".")[2]), name
    assert named == {found.name for found in pkgutil.iter_modules(fleet_server.statistics.__path__)} - {"intervals"}


def test_the_docstrings_examples_hold() -> None:
    attempted = 0
    for found in pkgutil.iter_modules(fleet_server.statistics.__path__):
        results = doctest.testmod(importlib.import_module(f"fleet_server.statistics.{found.name}"))
        assert not results.failed, found.name
        attempted += results.attempted
    assert attempted > 20
