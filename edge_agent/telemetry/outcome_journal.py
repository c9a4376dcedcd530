"""Outcomes on the disk, in the outbox's file: those of the open window, and the ids of those that were counted.

Invariants:
1. an outcome is open until the window that counts it is in the outbox; both change in one transaction, so that after
   any kill it is counted by exactly one window;
2. the ids of counted outcomes are kept against a repeated report, at most MAX_SEEN and for MAX_SEEN_AGE_S;
3. at most MAX_OPEN outcomes are open on the disk: more than that in one window are counted, but lost with the process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

from edge_agent.telemetry.spans import CLOCK_IS_SET_NS

MAX_SEEN = 20_000
MAX_SEEN_AGE_S = 30 * 86_400.0
MAX_OPEN = 100_000
_CLOCK_IS_SET_S = CLOCK_IS_SET_NS / 1e9  # what was noted before the clock was set has no known age

SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (
    boot_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    variant TEXT NOT NULL,
    arm TEXT NOT NULL,
    correct INTEGER,
    squared_error REAL,
    noted_s REAL NOT NULL,
    is_open INTEGER NOT NULL,
    PRIMARY KEY (boot_id, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS outcomes_by_time ON outcomes (is_open, noted_s);
"""

_COLUMNS = "boot_id, number, model, version, variant, arm, correct, squared_error"


class ReportedOutcome(NamedTuple):
    """The truth about one prediction: who made it, and either whether it was right or its squared error."""

    boot_id: str
    number: int
    model: str
    version: str
    variant: str
    arm: str
    correct: bool | None
    squared_error: float | None

    @property
    def identity(self) -> tuple[str, int]:
        """The prediction's name."""
        return self.boot_id, self.number


def note(db: sqlite3.Connection, outcomes: Iterable[ReportedOutcome], *, now_s: float, are_open: bool) -> None:
    """Keep outcomes, as open or as counted; one that is there already takes the new state. In a transaction."""
    rows = [(*outcome, now_s, are_open) for outcome in outcomes]
    if are_open:
        rows = rows[: max(0, MAX_OPEN - _count(db, is_open=True))]
    db.executemany(
        f"INSERT OR REPLACE INTO outcomes ({_COLUMNS}, noted_s, is_open) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - literals of this file
        rows,
    )


def forget_the_old(db: sqlite3.Connection, *, now_s: float) -> None:
    """Keep to the bounds on what was counted. In a transaction."""
    db.execute(
        "DELETE FROM outcomes WHERE is_open = 0 AND noted_s BETWEEN ? AND ?", (_CLOCK_IS_SET_S, now_s - MAX_SEEN_AGE_S)
    )
    surplus = _count(db, is_open=False) - MAX_SEEN
    if surplus > 0:
        db.execute(
            "DELETE FROM outcomes WHERE (boot_id, number) IN"
            " (SELECT boot_id, number FROM outcomes WHERE is_open = 0 ORDER BY noted_s LIMIT ?)",
            (surplus,),
        )


def open_outcomes(db: sqlite3.Connection) -> list[ReportedOutcome]:
    """Those that no window in the outbox counts, the earliest first."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM outcomes WHERE is_open = 1 ORDER BY noted_s")  # noqa: S608 - literals
    return [ReportedOutcome._make((*row[:6], None if row[6] is None else bool(row[6]), row[7])) for row in rows]


def counted_ids(db: sqlite3.Connection) -> list[tuple[str, int]]:
    """The (boot_id, number) of those that a window counted, the earliest first."""
    return db.execute("SELECT boot_id, number FROM outcomes WHERE is_open = 0 ORDER BY noted_s").fetchall()


def _count(db: sqlite3.Connection, *, is_open: bool) -> int:
    return int(db.execute("SELECT count(*) FROM outcomes WHERE is_open = ?", (is_open,)).fetchone()[0])
