"""What a command shows: tables for people, JSON for programs.

Invariant: text that devices or other people wrote reaches the terminal only as printable characters, so that
nobody can move an operator's cursor or hide a line from afar.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def printable(text: str) -> str:
    """`text` with every character that could steer a terminal replaced."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def show_json(value: Any) -> None:
    """One JSON value, on one line."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def show_line(text: str) -> None:
    """One line of text."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under headings."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(_cell(value))) for value in row))
    _console().print(table)


def show_facts(facts: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one a line."""
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(Text(name, style="bold"), Text(printable(_cell(value)), overflow="fold"))
    _console().print(grid)


def ago(at_ns: int | None) -> str:
    """How long ago a time was."""
    if not at_ns:
        return "never"
    seconds = max(0.0, time.time() - at_ns / 1e9)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def percent(share: float | None) -> str:
    """A share as a percentage; a dash when nothing was counted."""
    return "-" if share is None else f"{100 * share:.2f} %"


def milliseconds(value_us: float | None) -> str:
    """Microseconds as milliseconds; a dash when nothing was counted."""
    return "-" if value_us is None else f"{value_us / 1000:.2f} ms"


def labels_text(labels: dict[str, str]) -> str:
    """Labels as KEY=VALUE."""
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=False)
