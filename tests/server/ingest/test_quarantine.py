"""What is set aside is kept for a person, counted, bounded, and touches nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, func, select

from fleet_protocol.messages import Window, decode
from fleet_server.database.engine import open_engine
from fleet_server.database.tables import (
    device_events,
    ingest_ledger,
    metadata,
    quarantined_windows,
    refused_telemetry,
)
from fleet_server.ingest import quarantine
from fleet_server.ingest.batch_checks import Dropped, SetAside
from fleet_server.ingest.checks import Fault, Reason
from fleet_server.ingest.device_records import record_batch
from tests.server.telemetry_store.windows import window

FLEET = "acme"
OLD, SPAN = Fault(Reason.TOO_OLD, "it ended in 1970"), Fault(Reason.SPAN, "it spans a century")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_engine(database_url)
    metadata.create_all(opened)
    yield opened
    opened.dispose()


def put_aside(engine: Engine, *windows: Window, faults: tuple[Fault, ...] = (OLD,), now_ns: int = 5) -> list[str]:
    """Record windows; returns the reasons that were new."""
    with engine.begin() as connection:
        aside = [SetAside(window=one, faults=faults) for one in windows]
        return [str(first.fault.reason) for first in quarantine.record(connection, FLEET, aside, [], now_ns=now_ns)]


def test_a_window_is_kept_as_it_came_with_every_reason(engine: Engine) -> None:
    bad = window(count=2**50)
    put_aside(engine, bad, faults=(OLD, SPAN))
    with engine.connect() as connection:
        [row] = connection.execute(select(quarantined_windows)).all()
    assert decode(Window, row.payload) == bad
    assert [reason["reason"] for reason in row.reasons] == ["too_old", "span"]
    assert (row.device, row.sequence, row.received_ns) == (bad.device, bad.sequence, 5)


def test_a_device_and_reason_are_told_for_the_first_time_once(engine: Engine) -> None:
    assert put_aside(engine, window(), window(sequence=2)) == ["too_old"]
    assert put_aside(engine, window(sequence=3), now_ns=9) == []
    assert put_aside(engine, window(sequence=4), faults=(SPAN, OLD)) == ["span"]
    assert put_aside(engine, window(device="dev-2")) == ["too_old"]
    with engine.connect() as connection:
        assert quarantine.counts_by_device(connection, FLEET, ["dev-1", "dev-2", "dev-3"]) == {
            "dev-1": {"too_old": 4, "span": 1}, "dev-2": {"too_old": 1},
        }  # fmt: skip
        times = select(refused_telemetry.c.first_ns, refused_telemetry.c.last_ns)
        first, last = connection.execute(times.where(refused_telemetry.c.reason == "too_old")).first() or (0, 0)
    assert (first, last) == (5, 5)


def test_a_dropped_sketch_is_counted_and_nothing_is_kept(engine: Engine) -> None:
    dropped = Dropped(device="dev-1", fault=Fault(Reason.SKETCH_UNREADABLE, "feature 'f' cannot be read"))
    with engine.begin() as connection:
        assert len(quarantine.record(connection, FLEET, [], [dropped, dropped], now_ns=1)) == 1
        assert quarantine.counts_by_device(connection, FLEET, ["dev-1"]) == {"dev-1": {"sketch_unreadable": 2}}
        assert connection.execute(select(func.count()).select_from(quarantined_windows)).scalar() == 0


def test_the_newest_of_each_device_and_of_all_are_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MAX_KEPT_PER_DEVICE", 3)
    monkeypatch.setattr(quarantine, "MAX_KEPT", 7)
    for first in (1, 4):
        put_aside(engine, *(window(sequence=first + n) for n in range(3)))
    put_aside(engine, *(window(sequence=n) for n in range(10, 30)))
    assert _kept(engine) == [("dev-1", 27), ("dev-1", 28), ("dev-1", 29)]
    for number in range(6):
        put_aside(engine, window(device=f"other-{number}", sequence=1))
    assert _kept(engine) == [("dev-1", 29), *((f"other-{n}", 1) for n in range(6))]


def test_a_payload_too_long_to_keep_leaves_its_facts(engine: Engine) -> None:
    put_aside(engine, window(count=7, errors={"x" * 40 + str(n): n for n in range(64)}, covers=list(range(2, 9000, 2))))
    with engine.connect() as connection:
        [row] = connection.execute(select(quarantined_windows)).all()
    assert row.payload is None and row.model == "digits"


def test_the_ledger_notes_a_quarantined_window_as_seen_and_counts_it_as_none(engine: Engine) -> None:
    bad, good = window(sequence=2, covers=[1]), window(sequence=3)
    with engine.begin() as connection:
        recorded = record_batch(connection, FLEET, [good], [], now_ns=1, quarantined=[bad])
        assert (recorded.fresh_windows, recorded.quarantined) == (1, [bad])
        assert [stored.ranges for stored in recorded.confirmations] == [[(2, 3)]]
        again = record_batch(connection, FLEET, [good], [], now_ns=1, quarantined=[bad])
        assert (again.fresh_windows, again.repeats, again.quarantined) == (0, 2, [])
        [row] = connection.execute(select(ingest_ledger)).all()
        assert (row.windows, row.ranges) == (1, [[2, 3]]), "what it claims to cover stays missing"
        assert connection.execute(select(func.count()).select_from(device_events)).scalar() == 0


def test_a_good_window_under_the_name_of_a_quarantined_one_is_a_repeat(engine: Engine) -> None:
    bad, good = window(sequence=2, count=2**50), window(sequence=2)
    with engine.begin() as connection:
        recorded = record_batch(connection, FLEET, [good], [], now_ns=1, quarantined=[bad])
    assert (recorded.fresh_windows, recorded.repeats, len(recorded.quarantined)) == (0, 1, 1)


def _kept(engine: Engine) -> list[tuple[str, int]]:
    query = select(quarantined_windows.c.device, quarantined_windows.c.sequence)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query.order_by(quarantined_windows.c.id))]
