"""What only the embedded store promises: crashes, retention, a shared file."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet_protocol.messages import ShadowAgreement
from fleet_server.errors import StoreUnavailableError
from fleet_server.telemetry_store import (
    EmbeddedStore,
    Grain,
    MergedKey,
    MergedWindow,
    Point,
    Slice,
    embedded,
    embedded_rows,
)
from tests.real_servers.processes import Process
from tests.server.telemetry_store.keep_writing import WINDOWS_PER_WRITE
from tests.server.telemetry_store.windows import SECOND_NS, T0_NS, window

EVERYTHING = Slice(fleet="home", start_ns=-1, end_ns=2**63 - 1)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    opened = EmbeddedStore(tmp_path / "telemetry.db")
    yield opened
    opened.close()


@pytest.mark.parametrize("acknowledged_writes", [1, 4, 9, 25])
def test_kill_9_in_the_middle_of_writing_loses_nothing_acknowledged_and_tears_no_batch(
    tmp_path: Path, acknowledged_writes: int
) -> None:
    path = tmp_path / "telemetry.db"
    writer = Process(
        [sys.executable, "-m", "tests.server.telemetry_store.keep_writing", path],
        folder=tmp_path,
        name="writer",
        env={"PYTHONPATH": str(ROOT)},
    )
    try:
        writer.wait_ready(
            lambda: writer.stdout_path.read_bytes().count(b"\n") >= acknowledged_writes, 30.0, "the writes are there"
        )
    finally:
        writer.kill()
    acknowledged = int(writer.stdout_path.read_bytes().rpartition(b"\n")[0].split()[-1])

    store = EmbeddedStore(path)
    found = [w.sequence for w in store.windows(EVERYTHING, limit=10**9)]
    store.close()
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= acknowledged
    assert len(found) % WINDOWS_PER_WRITE == 0


def test_a_write_that_fails_leaves_none_of_its_windows(store: EmbeddedStore) -> None:
    store.write("home", [window(sequence=1)])
    with pytest.raises(StoreUnavailableError):
        store.write("home", [window(sequence=2), window(sequence=3, model=None)])
    assert [w.sequence for w in store.windows(EVERYTHING)] == [1]


def test_an_identity_used_for_other_contents_keeps_the_first(store: EmbeddedStore) -> None:
    store.write("home", [window(count=3)])
    store.write("home", [window(count=999, end_ns=T0_NS + 5), window(sequence=2)])
    assert store.windows(EVERYTHING) == [window(count=3), window(sequence=2)]


def test_expiry_deletes_exactly_what_is_older_than_the_retention_in_bounded_batches(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ROWS_PER_EXPIRY_BATCH", 10)
    store.write("home", [window(sequence=n, end_ns=T0_NS + n) for n in range(1, 36)])
    assert store.expire(T0_NS + 10**6 * SECOND_NS) == 0  # no retention is set: nothing may go
    store.set_up(raw_retention_s=60)
    now_ns = T0_NS + 30 + 60 * SECOND_NS
    assert store.expire(now_ns) == 30
    assert [w.sequence for w in store.windows(EVERYTHING)] == [31, 32, 33, 34, 35]
    assert store.expire(now_ns) == 0


def test_two_stores_on_one_file_see_each_others_windows(store: EmbeddedStore, tmp_path: Path) -> None:
    other = EmbeddedStore(tmp_path / "telemetry.db")
    store.write("home", [window(sequence=1)])
    other.write("home", [window(sequence=1), window(sequence=2)])
    assert [w.sequence for w in store.windows(EVERYTHING)] == [1, 2]
    other.close()


def test_reads_go_on_while_a_write_holds_the_file(store: EmbeddedStore, tmp_path: Path) -> None:
    store.write("home", [window()])
    with sqlite3.connect(tmp_path / "telemetry.db", isolation_level=None) as writing:
        writing.execute("BEGIN EXCLUSIVE")
        assert store.windows(EVERYTHING) == [window()]
        writing.execute("ROLLBACK")


def test_a_file_locked_by_another_process_for_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "BUSY_TIMEOUT_S", 0.05)
    store = EmbeddedStore(tmp_path / "telemetry.db")
    with sqlite3.connect(tmp_path / "telemetry.db", isolation_level=None) as writing:
        writing.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="locked"):
            store.write("home", [window()])
        writing.execute("ROLLBACK")
    store.write("home", [window()])
    assert store.windows(EVERYTHING) == [window()]
    store.close()


def test_a_folder_that_is_not_there_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=r"no-such-folder.telemetry\.db"):
        EmbeddedStore(tmp_path / "no-such-folder" / "telemetry.db")


def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.db"
    path.write_bytes(b"a letter, not a database" * 100)
    with pytest.raises(StoreUnavailableError, match="not a database"):
        EmbeddedStore(path)
    assert path.read_bytes() == b"a letter, not a database" * 100


def test_every_commit_is_forced_to_the_disk(store: EmbeddedStore) -> None:
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_of_an_earlier_release_is_opened_and_keeps_its_windows(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.db"
    before = EmbeddedStore(path)
    before.write("home", [window(sequence=1)])
    before.close()
    with sqlite3.connect(path) as connection:
        for column in embedded_rows.LATER_COLUMNS:
            connection.execute(f"ALTER TABLE inference DROP COLUMN {column}")
    connection.close()

    for _ in range(2):
        store = EmbeddedStore(path)
        store.write("home", [window(sequence=2, shadow=ShadowAgreement(compared=4, disagreed=1))])
        assert [w.sequence for w in store.windows(EVERYTHING)] == [1, 2]
        [row] = store.totals_by_device(EVERYTHING)
        assert (row.totals.shadow_compared, row.totals.shadow_disagreed) == (4, 1)
        store.close()


def test_expiry_takes_merged_windows_and_points_with_their_own_retentions(store: EmbeddedStore) -> None:
    hour_s, start_ns = 3_600, T0_NS // (3_600 * SECOND_NS) * 3_600 * SECOND_NS
    one = MergedWindow(key=MergedKey(model="m", version="1.0.0", variant="v", arm="main"), start_ns=start_ns, windows=1)
    for grain in Grain:
        store.write_merged("home", grain, [one])
    point = Point(measurement="drift", at_ns=start_ns, fields={"p": 1})
    store.write_points("home", [point])
    store.set_up(raw_retention_s=60, merged_retention_s=86_400)

    def left() -> list[bool]:
        merged = [bool(list(store.merged(EVERYTHING, grain))) for grain in Grain]
        return [*merged, bool(store.points("home", "drift", start_ns=0, end_ns=2**62, tags={}))]

    for after_s, expected in (
        (60 + 59, [True, True, True, True]),
        (60 + 60, [True, False, True, True]),
        (60 + hour_s, [False, False, True, True]),
        (86_400 - 1, [False, False, True, True]),
        (86_400, [False, False, True, False]),
        (86_400 + hour_s, [False, False, False, False]),
    ):
        store.expire(start_ns + after_s * SECOND_NS)
        assert left() == expected, after_s


@pytest.mark.parametrize(
    ("narrowed", "index"),
    [
        ({}, "ix_inference_end"),
        ({"model": "digits"}, "ix_inference_end"),
        ({"model": "digits", "version": "1.0.0"}, "ix_inference_model"),
        ({"model": "digits", "version": "1.0.0", "devices": frozenset({"dev-1"})}, "ix_inference_device"),
    ],
)
def test_a_slice_is_found_by_the_index_that_knows_its_times(
    store: EmbeddedStore, narrowed: dict[str, Any], index: str
) -> None:
    condition, values = embedded_rows.window_condition(replace(EVERYTHING, **narrowed))
    query = f"EXPLAIN QUERY PLAN SELECT window FROM inference WHERE {condition}"  # noqa: S608 - column names only
    plan = store._writer.execute(query, values).fetchall()
    assert index in plan[0][3]
    assert "end_ns>?" in plan[0][3]
