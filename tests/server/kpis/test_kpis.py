"""Key figures: what they say of sums, of nothing, and of devices that were silent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, insert

from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Outcomes
from fleet_server.database.engine import open_engine
from fleet_server.database.tables import devices, metadata
from fleet_server.kpis import Uptime, key_figures, merge_totals, read_kpis, uptime_share
from fleet_server.telemetry_store import EmbeddedStore, Totals
from tests.server.telemetry_store.windows import latency_of, window

HOUR_NS = 3600 * 10**9
NOW_NS = 486_111 * HOUR_NS + HOUR_NS // 4
FLEET = "demo"
_KEPT_FIELDS = {
    "fleet", "at_ns", "span_s", "devices", "devices_online", "models", "predictions", "windows", "errors",
    "error_rate", "correct", "wrong", "accuracy", "p50_us", "p95_us", "p99_us", "mean_us", "max_us",
}  # fmt: skip


def totals(*latencies_us: float, errors: int = 0, correct: int = 0, wrong: int = 0) -> Totals:
    histogram = LatencyHistogram.of(latencies_us)
    return Totals(windows=1, count=len(latencies_us), errors=errors, correct=correct, wrong=wrong, latency=histogram)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[tuple[Engine, EmbeddedStore]]:
    engine, store = open_engine(f"sqlite:///{tmp_path / 'fleet.db'}"), EmbeddedStore(tmp_path / "telemetry.db")
    metadata.create_all(engine)
    yield engine, store
    store.close()
    engine.dispose()


def add_device(engine: Engine, name: str, *, created_ns: int, online: bool = True, heard: bool = True) -> None:
    row = {"fleet": FLEET, "device": name, "labels": {}, "online": online, "created_ns": created_ns}
    with engine.begin() as connection:
        connection.execute(insert(devices).values(**row, last_seen_ns=NOW_NS if heard else 0))


def test_nothing_counted_is_told_as_unknown_and_never_as_zero() -> None:
    none = Uptime(share=None, devices=0, slot_s=60)
    found = key_figures(merge_totals([]), fleet=FLEET, at_ns=1, span_s=60, devices=0, online=0, models=0, uptime=none)
    assert (found.predictions, found.predictions_per_day) == (0, 0.0)
    unknown = (found.error_rate, found.accuracy, found.p50_us, found.max_us, found.online_share, found.uptime_share)
    assert unknown == (None,) * 6


def test_percentiles_are_those_of_the_merged_histogram_and_not_a_mean_of_percentiles() -> None:
    fast, slow = totals(*[100.0] * 990), totals(*[10_000.0] * 10)
    merged = merge_totals([fast, slow])
    none = Uptime(share=None, devices=0, slot_s=60)
    found = key_figures(merged, fleet=FLEET, at_ns=1, span_s=43_200, devices=2, online=1, models=1, uptime=none)
    assert found.p99_us == pytest.approx(100, rel=0.01)
    assert found.max_us == pytest.approx(10_000, rel=0.02)
    assert found.predictions_per_day == 2_000
    assert found.online_share == 0.5


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)), max_size=6))
def test_merged_totals_do_not_depend_on_how_they_were_parted(rows: list[tuple[int, int, int]]) -> None:
    pieces = [totals(*[50.0] * e, errors=e, correct=c, wrong=w) for e, c, w in rows]
    half = len(pieces) // 2
    assert merge_totals(pieces) == merge_totals([merge_totals(pieces[:half]), merge_totals(pieces[half:])])


def test_uptime_counts_a_device_only_from_when_it_was_due() -> None:
    heard = [(0, {"a"}), (60, {"a"}), (120, {"a", "late"})]
    assert uptime_share(heard, {"a": 0, "late": 61}, slot_s=60) == Uptime(share=1.0, devices=2, slot_s=60)
    assert uptime_share(heard, {"a": 0, "late": 0}, slot_s=60).share == pytest.approx(4 / 6)
    assert uptime_share(heard, {"a": 500}, slot_s=60) == Uptime(share=None, devices=0, slot_s=60)


def test_the_last_day_is_read_with_devices_their_silence_and_no_earlier_telemetry(
    parts: tuple[Engine, EmbeddedStore],
) -> None:
    engine, store = parts
    last_hour_ns = NOW_NS // HOUR_NS * HOUR_NS
    add_device(engine, "steady", created_ns=0)
    add_device(engine, "silent", created_ns=0, online=False)
    add_device(engine, "never", created_ns=0, online=False, heard=False)
    add_device(engine, "young", created_ns=last_hour_ns - 2 * HOUR_NS)
    windows = [
        window(device="steady", sequence=hour + 1, end_ns=last_hour_ns - hour * HOUR_NS - HOUR_NS // 2)
        for hour in range(24)
    ]
    windows += [
        window(device="young", sequence=1, end_ns=last_hour_ns - HOUR_NS // 2, errors={"timeout": 1}),
        window(device="silent", sequence=1, end_ns=last_hour_ns - 30 * HOUR_NS, latency=latency_of(9e6)),
        window(device="silent", sequence=2, end_ns=NOW_NS, outcomes=Outcomes(correct=3, wrong=1)),
    ]
    store.write(FLEET, windows)
    found = read_kpis(engine, store, fleet=FLEET, now_ns=NOW_NS)
    assert (found.devices, found.devices_online, found.windows, found.predictions) == (4, 2, 26, 78)
    assert found.accuracy == 0.75
    assert found.error_rate == pytest.approx(1 / 79)
    assert found.max_us is not None
    assert math.isclose(found.max_us, 400, rel_tol=0.02)
    assert found.uptime_share == pytest.approx((24 + 0 + 1) / (24 + 24 + 2))
    assert (found.uptime_devices, found.uptime_slot_s) == (3, 3600)


def test_the_fields_that_programs_read_are_still_there(parts: tuple[Engine, EmbeddedStore]) -> None:
    engine, store = parts
    assert set(read_kpis(engine, store, fleet=FLEET, now_ns=NOW_NS).__struct_fields__) >= _KEPT_FIELDS
