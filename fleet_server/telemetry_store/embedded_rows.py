"""The embedded store's tables, and the rows of windows, merged windows and points in them. SQL and bound values only.

Every function takes a connection that the store lends it, inside the transaction that the store began. A `+` before a
column keeps an index that would be worse out of SQLite's choice: it has no statistics of the table, and takes a
fleet's name for rare.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence

from fleet_protocol.messages import Window
from fleet_server.telemetry_store._stored import (
    error_count,
    outcomes,
    pack,
    pack_classes,
    shadow_agreement,
    unpack_classes,
    unpack_merged,
)
from fleet_server.telemetry_store.aggregation import WindowSums
from fleet_server.telemetry_store.merged import Grain, MergedKey, MergedWindow
from fleet_server.telemetry_store.points import pack_fields, pack_tags, unpack_point
from fleet_server.telemetry_store.port import MAX_INT64, Point, Slice

FETCH_ROWS = 1_000
_Values = list[str | int]

SCHEMA = """
CREATE TABLE IF NOT EXISTS inference (
  fleet TEXT NOT NULL, device TEXT NOT NULL, boot_id TEXT NOT NULL, sequence INTEGER NOT NULL,
  model TEXT NOT NULL, version TEXT NOT NULL, variant TEXT NOT NULL, arm TEXT NOT NULL,
  start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
  count INTEGER NOT NULL, errors INTEGER NOT NULL, correct INTEGER NOT NULL, wrong INTEGER NOT NULL,
  latency BLOB NOT NULL, window BLOB NOT NULL,
  shadow_compared INTEGER NOT NULL DEFAULT 0, shadow_disagreed INTEGER NOT NULL DEFAULT 0,
  classes BLOB, rss_bytes INTEGER, temperature_c REAL,
  PRIMARY KEY (fleet, device, boot_id, sequence)
);
CREATE INDEX IF NOT EXISTS ix_inference_end ON inference (end_ns);
CREATE INDEX IF NOT EXISTS ix_inference_model ON inference (fleet, model, version, end_ns);
CREATE INDEX IF NOT EXISTS ix_inference_device ON inference (fleet, device, end_ns);
CREATE TABLE IF NOT EXISTS merged_windows (
  fleet TEXT NOT NULL, grain TEXT NOT NULL, start_ns INTEGER NOT NULL,
  model TEXT NOT NULL, version TEXT NOT NULL, variant TEXT NOT NULL, arm TEXT NOT NULL,
  device TEXT NOT NULL, cohort TEXT NOT NULL, merged BLOB NOT NULL,
  PRIMARY KEY (fleet, grain, start_ns, model, version, variant, arm, device, cohort)
);
CREATE INDEX IF NOT EXISTS ix_merged_windows_start ON merged_windows (grain, start_ns);
CREATE INDEX IF NOT EXISTS ix_merged_windows_device ON merged_windows (fleet, device, start_ns) WHERE device <> '';
CREATE TABLE IF NOT EXISTS points (
  fleet TEXT NOT NULL, measurement TEXT NOT NULL, at_ns INTEGER NOT NULL, tags TEXT NOT NULL, fields TEXT NOT NULL,
  PRIMARY KEY (fleet, measurement, at_ns, tags)
);
CREATE INDEX IF NOT EXISTS ix_points_at ON points (at_ns);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""

LATER_COLUMNS = {
    "shadow_compared": "INTEGER NOT NULL DEFAULT 0",
    "shadow_disagreed": "INTEGER NOT NULL DEFAULT 0",
    "classes": "BLOB",
    "rss_bytes": "INTEGER",
    "temperature_c": "REAL",
}
"""What `inference` lacks in files of earlier releases; at the end, where ALTER TABLE puts it."""

INSERT_WINDOW = """
INSERT INTO inference (
  fleet, device, boot_id, sequence, model, version, variant, arm, start_ns, end_ns, count, errors, correct, wrong,
  latency, window, shadow_compared, shadow_disagreed, classes, rss_bytes, temperature_c
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (fleet, device, boot_id, sequence) DO NOTHING
"""
REPLACE_MERGED = "INSERT OR REPLACE INTO merged_windows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
DELETE_MERGED = """
DELETE FROM merged_windows WHERE fleet = ? AND grain = ? AND start_ns = ?
AND model = ? AND version = ? AND variant = ? AND arm = ? AND device = ? AND cohort = ?
"""
REPLACE_POINT = "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?)"
_KEY_COLUMNS = "start_ns, model, version, variant, arm, device, cohort"


def window_row(fleet: str, window: Window) -> tuple[str | int | float | bytes | None, ...]:
    """The values of INSERT_WINDOW."""
    known, shadow = outcomes(window), shadow_agreement(window)
    resources = window.resources
    return (
        fleet, window.device, window.boot_id, window.sequence,
        window.model, window.version, window.variant, window.arm,
        window.start_ns, window.end_ns,
        window.count, error_count(window), known.correct, known.wrong,
        window.latency, pack(window), shadow.compared, shadow.disagreed,
        pack_classes(window.classes),
        resources.rss_bytes if resources else None, resources.temperature_c if resources else None,
    )  # fmt: skip  # in the order of the table's lines


def window_condition(where: Slice) -> tuple[str, _Values]:
    """What windows of a slice fulfil, with the values to bind."""
    by_model = where.devices is None and where.model is not None and where.version is not None
    kept = "" if by_model else "+"
    condition = f"{'' if by_model or where.devices is not None else '+'}fleet = ? AND end_ns > ? AND end_ns <= ?"
    values: _Values = [where.fleet, max(where.start_ns, -1), min(where.end_ns, MAX_INT64)]
    columns = (("model", where.model), ("version", where.version), ("variant", where.variant), ("arm", where.arm))
    for column, wanted in columns:
        if wanted is not None:
            condition += f" AND {kept}{column} = ?"
            values.append(wanted)
    if where.devices is not None:
        condition += " AND device IN (SELECT value FROM json_each(?))"
        values.append(json.dumps(sorted(where.devices)))
    return condition, values


def sums(connection: sqlite3.Connection, where: Slice) -> Iterator[WindowSums]:
    """What sums need of every window of a slice."""
    condition, values = window_condition(where)
    cursor = connection.execute(
        "SELECT device, model, version, arm, end_ns, count, errors, correct, wrong, latency,"  # noqa: S608 - column names only; values are bound
        " shadow_compared, shadow_disagreed, classes, rss_bytes, temperature_c"
        f" FROM inference WHERE {condition}",
        values,
    )
    while rows := cursor.fetchmany(FETCH_ROWS):
        for device, model, version, arm, end_ns, count, errors, correct, wrong, latency, *later in rows:
            compared, disagreed, classes, rss_bytes, temperature_c = later
            yield WindowSums(
                device=device, model=model, version=version, arm=arm, end_ns=end_ns,
                count=count, errors=errors, correct=correct, wrong=wrong, latency=latency,
                shadow_compared=compared, shadow_disagreed=disagreed,
                classes=unpack_classes(classes), rss_bytes=rss_bytes, temperature_c=temperature_c,
            )  # fmt: skip  # in the order of the SELECT


def merged_row(fleet: str, grain: Grain, one: MergedWindow) -> tuple[str | int | bytes, ...]:
    """The values of REPLACE_MERGED; without the last, those of DELETE_MERGED."""
    return (fleet, grain.value, *_place(one), pack(one))


def merged_page(
    connection: sqlite3.Connection, where: Slice, grain: Grain, after: MergedWindow | None, file: str
) -> list[MergedWindow]:
    """The next FETCH_ROWS merged windows of a slice after one of them, by start, then key."""
    condition = "fleet = ? AND grain = ? AND start_ns >= ? AND start_ns < ?"
    values: _Values = [where.fleet, grain.value, max(where.start_ns, -MAX_INT64), min(where.end_ns, MAX_INT64)]
    key = (
        ("model", where.model), ("version", where.version), ("variant", where.variant), ("arm", where.arm),
        ("cohort", where.cohort),
    )  # fmt: skip  # in the order of the key
    for column, wanted in key:
        if wanted is not None:
            condition += f" AND {column} = ?"
            values.append(wanted)
    if where.devices is not None:
        condition += " AND device <> '' AND device IN (SELECT value FROM json_each(?))"
        values.append(json.dumps(sorted(where.devices)))
    if after is not None:
        condition += f" AND ({_KEY_COLUMNS}) > (?, ?, ?, ?, ?, ?, ?)"
        values += _place(after)
    rows = connection.execute(
        f"SELECT merged FROM merged_windows WHERE {condition} ORDER BY {_KEY_COLUMNS} LIMIT {FETCH_ROWS}",  # noqa: S608 - as above
        values,
    ).fetchall()
    return [unpack_merged(blob, file) for (blob,) in rows]


def _place(one: MergedWindow) -> tuple[int, str, str, str, str, str, str]:
    key: MergedKey = one.key
    return one.start_ns, key.model, key.version, key.variant, key.arm, key.device, key.cohort


def point_row(fleet: str, point: Point) -> tuple[str | int, ...]:
    """The values of REPLACE_POINT."""
    return fleet, point.measurement, point.at_ns, pack_tags(point.tags), pack_fields(point.fields)


def point_rows(
    connection: sqlite3.Connection,
    fleet: str,
    measurement: str,
    span_ns: tuple[int, int],
    tags: Mapping[str, str],
    *,
    limit: int,
    file: str,
) -> Sequence[Point]:
    """The first `limit` points of a measurement in [start, end) with these tags, by time, then tags."""
    condition = "fleet = ? AND measurement = ? AND at_ns >= ? AND at_ns < ?"
    values: _Values = [fleet, measurement, max(span_ns[0], -MAX_INT64), min(span_ns[1], MAX_INT64)]
    for name, value in tags.items():
        condition += " AND EXISTS (SELECT 1 FROM json_each(points.tags) AS tag WHERE tag.key = ? AND tag.value = ?)"
        values += [name, value]
    rows = connection.execute(
        f"SELECT at_ns, tags, fields FROM points WHERE {condition} ORDER BY at_ns, tags LIMIT ?",  # noqa: S608 - as above
        (*values, limit),
    ).fetchall()
    return [unpack_point(measurement, at_ns, of_tags, fields, file) for at_ns, of_tags, fields in rows]
