"""Series of models and devices: the same from merged series as from windows; grouped, filtered, and as files."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import numpy as np
import pytest
from scipy import stats
from sqlalchemy import insert

from fleet_protocol.bins import BinSketch
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import EstimatedAccuracy, OutboxStatus, Outcomes, Resources, Window
from fleet_server.api import telemetry_series
from fleet_server.api.telemetry_series import accuracy_interval
from fleet_server.database.tables import devices
from fleet_server.ingest.device_records import record_batch
from tests.server.api.running import Server, running_server
from tests.server.telemetry_store.windows import MINUTE_NS, SECOND_NS, T0_NS, latency_of, window

HOUR_NS = 3_600 * SECOND_NS
START_NS = T0_NS // (24 * HOUR_NS) * 24 * HOUR_NS
SITES = {"dev-0": "lisbon", "dev-1": "porto", "dev-2": "lisbon"}


def take_in(server: Server, windows: list[Window]) -> None:
    """Windows as the ingest takes them in: stored, then counted."""
    server.store.write("demo", windows)
    with server.engine.begin() as connection:
        record_batch(connection, "demo", windows, [], now_ns=1)


@cache
def fleet_windows() -> list[Window]:
    """Two hours of three unequal devices, two versions, two arms; in no order."""
    dice, made = random.Random(4), []
    for number, device in enumerate(SITES):
        for minute in range(120):
            values = [dice.lognormvariate(6 + number, 0.5) for _ in range(dice.randint(1, 20))]
            right = dice.randint(0, len(values))
            made.append(
                window(
                    device=device,
                    sequence=minute + 1,
                    version="1.1.0" if minute >= 60 else "1.0.0",
                    arm="b" if dice.random() < 0.3 else "main",
                    end_ns=START_NS + (minute + 1) * MINUTE_NS - dice.randint(0, 59) * SECOND_NS,
                    count=len(values),
                    latency=latency_of(*values),
                    queue_wait=latency_of(*(value / 10 for value in values)),
                    errors={"deadline": 1} if dice.random() < 0.2 else {},
                    outcomes=Outcomes(correct=right, wrong=len(values) - right),
                    estimated_accuracy=EstimatedAccuracy(count=len(values), confidence_sum=0.75 * len(values)),
                )
            )
    dice.shuffle(made)
    return made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A fleet that the tests of this file only read."""
    with running_server(tmp_path_factory.mktemp("fleet")) as server:
        _fill(server)
        yield server


def _fill(server: Server) -> None:
    with server.engine.begin() as connection:
        for device, site in SITES.items():
            labels = {"site": site, "cohort": "early" if device == "dev-0" else "late"}
            connection.execute(insert(devices).values(fleet="demo", device=device, labels=labels, created_ns=1))
    take_in(server, fleet_windows())


def ask(server: Server, path: str = "models/digits/metrics", **parameters: Any) -> dict[str, Any]:
    answer = get(server, path, **parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def get(server: Server, path: str = "models/digits/metrics", **parameters: Any) -> httpx.Response:
    span = {"start_ns": START_NS, "end_ns": START_NS + 2 * HOUR_NS}
    if "start" in parameters:
        span = {}
    with server.client("viewer") as client:
        return client.get(f"/api/v1/{path}", params={**span, **parameters})


def expected(windows: list[Window]) -> dict[str, Any]:
    """Some figures of windows, from all of them at once."""
    latency, queue = LatencyHistogram(), LatencyHistogram()
    for one in windows:
        latency.merge(LatencyHistogram.from_bytes(one.latency))
        queue.merge(LatencyHistogram.from_bytes(one.queue_wait))
    right = sum(one.outcomes.correct for one in windows if one.outcomes)
    return {
        "windows": len(windows),
        "devices": len({one.device for one in windows}),
        "count": latency.count,
        "errors": sum(sum(one.errors.values()) for one in windows),
        "accuracy": right / latency.count,
        "p50_us": latency.quantile_us(0.5),
        "p90_us": latency.quantile_us(0.9),
        "p95_us": latency.quantile_us(0.95),
        "p99_us": latency.quantile_us(0.99),
        "p999_us": latency.quantile_us(0.999),
        "max_us": latency.max_us,
        "queue_p95_us": queue.quantile_us(0.95),
    }


def require(point: dict[str, Any], windows: list[Window]) -> None:
    wanted = expected(windows)
    assert {name: point[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("step", "offset_s", "read_from"),
    [("30s", 0, "windows"), ("5m", 0, "fleet_minute"), ("5m", 7, "windows"), ("1h", 0, "fleet_hour")],
)
def test_every_step_is_the_exact_sum_of_its_windows(fleet: Server, step: str, offset_s: int, read_from: str) -> None:
    shift_ns = offset_s * SECOND_NS
    span = {"start_ns": START_NS + shift_ns, "end_ns": START_NS + 2 * HOUR_NS - shift_ns}
    found = ask(fleet, step=step, **span)
    assert found["read_from"] == read_from
    step_ns = found["step_s"] * SECOND_NS
    inside = [one for one in fleet_windows() if span["start_ns"] < one.end_ns <= span["end_ns"]]
    steps = {(one.end_ns - 1) // step_ns * step_ns for one in inside}
    assert [point["start_ns"] for point in found["points"]] == sorted(steps)
    for point in found["points"]:
        start_ns = point["start_ns"]
        require(point, [one for one in inside if start_ns < one.end_ns <= start_ns + step_ns])
        assert point["estimated_accuracy"] == pytest.approx(0.75)


@pytest.mark.parametrize("step", ["1h", "2h", "7m"])
def test_groups_by_version_arm_device_and_label_are_those_of_their_windows(fleet: Server, step: str) -> None:
    keys = ["version", "arm", "device", "label:site", "cohort"]
    end_ns = START_NS + 2 * HOUR_NS
    found = ask(fleet, step=step, group_by=",".join(keys), end_ns=end_ns)
    assert found["group_by"] == keys
    step_ns = found["step_s"] * SECOND_NS
    seen = 0
    for point in found["points"]:
        assert point["label:site"] == SITES[point["device"]]
        assert point["cohort"] == ("early" if point["device"] == "dev-0" else "late")
        require(
            point,
            [
                one
                for one in fleet_windows()
                if (one.version, one.arm, one.device) == (point["version"], point["arm"], point["device"])
                and (one.end_ns - 1) // step_ns * step_ns == point["start_ns"]
            ],
        )
        seen += point["windows"]
    assert seen == len(fleet_windows())


def test_filters_narrow_to_version_arm_cohort_variant_and_labels(fleet: Server) -> None:
    def windows(**parameters: Any) -> int:
        return sum(point["windows"] for point in ask(fleet, step="1h", **parameters)["points"])

    made = fleet_windows()
    assert windows() == len(made)
    assert windows(version="1.1.0") == 180
    assert windows(arm="b") == sum(one.arm == "b" for one in made)
    assert windows(variant="int8-qdq-u8s8", cohort="late") == 240
    assert windows(variant="other") == 0
    assert windows(selector="site=lisbon") == 240
    assert windows(selector=["site=lisbon", "cohort=late"]) == 120
    assert windows(selector="site=nowhere") == 0
    assert windows(selector="site=lisbon", cohort="early") == 120


def test_a_cohort_is_the_same_in_every_series(fleet: Server) -> None:
    found = {
        step: {p["cohort"]: p["windows"] for p in ask(fleet, step=step, group_by="cohort")["points"]}
        for step in ("2h", "1d")
    }
    minutes = ask(fleet, step="1m", group_by="cohort")["points"]
    assert found == {"2h": {"early": 120, "late": 240}, "1d": {"early": 120, "late": 240}}
    assert sum(point["windows"] for point in minutes if point["cohort"] == "early") == 120


def test_times_are_told_in_nanoseconds_or_by_rfc_3339(fleet: Server) -> None:
    of_ns = ask(fleet, step="1h")
    start, end = (np.datetime64(at, "ns").astype("datetime64[s]") for at in (START_NS, START_NS + 2 * HOUR_NS))
    for suffix in ("Z", "+00:00"):
        by_text = ask(fleet, step="3600", start=f"{start}{suffix}", end=f"{end}{suffix}")
        assert by_text == of_ns
    assert ask(fleet, step_s=3600, start=str(START_NS), end=str(START_NS + 2 * HOUR_NS)) == of_ns


BAD: list[dict[str, Any]] = [
    {"start": "yesterday"},
    {"start": "2026-03-01T09:40:00"},
    {"start": "1969-12-31T23:59:59Z"},
    {"start": "9" * 19},
    {"start": "1", "start_ns": 1},
    {"start_ns": 5, "end_ns": 5},
    {"step": "0"},
    {"step": "5x"},
    {"step": "-5m"},
    {"step": "367d"},
    {"step": "5m", "step_s": 300},
    {"step": "1s"},
    {"group_by": "colour"},
    {"group_by": "label:"},
    {"group_by": "label:a'b"},
    {"group_by": ",".join(f"label:{n}" for n in range(9))},
    {"selector": "site"},
    {"selector": 'a"=x'},
    {"format": "xml"},
    {"version": "x" * 81},
]


def test_a_bad_question_gets_one_clear_problem(fleet: Server) -> None:
    for bad in BAD:
        answer = get(fleet, **bad)
        assert answer.status_code == 400, (bad, answer.text)
        assert answer.headers["content-type"] == "application/problem+json" and answer.json()["detail"], bad


def test_an_answer_with_too_many_rows_or_windows_says_what_to_do(
    fleet: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_series, "MAX_ROWS", 10)
    answer = get(fleet, step="1m", group_by="device")
    assert answer.status_code == 400 and "more than 10 rows" in answer.json()["detail"]
    monkeypatch.setattr(telemetry_series, "MAX_ROWS", 20_000)
    monkeypatch.setattr(telemetry_series, "MAX_WINDOWS", 50)
    answer = get(fleet, step="30s")
    assert answer.status_code == 400 and "whole minutes" in answer.json()["detail"]
    answer = get(fleet, step="30s", group_by="device")
    assert answer.status_code == 400 and "whole hours" in answer.json()["detail"]
    widened = ask(fleet, step="1h", start_ns=START_NS + 1, end_ns=START_NS + 2 * HOUR_NS - 1)
    assert (widened["start_ns"], widened["read_from"]) == (START_NS, "fleet_minute")
    assert sum(point["windows"] for point in widened["points"]) == 360


def test_an_accuracy_has_an_interval_where_devices_are_seen_and_none_elsewhere(fleet: Server) -> None:
    merged = ask(fleet, step="2h")["points"][0]
    assert (merged["accuracy_lower"], merged["accuracy_upper"]) == (None, None)
    [seen] = ask(fleet, step="2h", interval="true")["points"]
    assert seen["accuracy_lower"] < seen["accuracy"] == merged["accuracy"] < seen["accuracy_upper"]
    of_one = ask(fleet, step="2h", group_by="device")["points"]
    assert all(point["accuracy_lower"] < point["accuracy"] < point["accuracy_upper"] for point in of_one)


def test_the_interval_holds_its_confidence_on_an_unequal_fleet_where_a_pooled_one_does_not() -> None:
    random_, runs, missed, missed_pooled = np.random.default_rng(11), 400, 0, 0
    odds = math.log(0.9 / 0.1)
    true = float(np.mean(1 / (1 + np.exp(-(odds + 0.8 * np.random.default_rng(1).standard_normal(200_000))))))
    for _ in range(runs):
        rates = 1 / (1 + np.exp(-(odds + 0.8 * random_.standard_normal(30))))
        right = random_.binomial(500, rates)
        judged = {str(n): (int(r), 500 - int(r)) for n, r in enumerate(right)}
        lower, upper = accuracy_interval(judged)
        assert lower is not None and upper is not None
        missed += not lower <= true <= upper
        low, high = accuracy_interval({"all": (int(right.sum()), int(15_000 - right.sum()))})
        assert low is not None and high is not None
        missed_pooled += not low <= true <= high
    assert stats.binomtest(missed, runs, 0.05, alternative="greater").pvalue > 0.01, missed
    assert missed_pooled > runs // 3


def test_devices_that_all_agree_still_leave_doubt() -> None:
    lower, upper = accuracy_interval({"a": (10, 0), "b": (10, 0)})
    assert upper == pytest.approx(1.0) and lower is not None and 0.8 < lower < 0.9
    assert accuracy_interval({"a": (0, 0)}) == (None, None)


def test_a_device_has_a_series_and_its_windows_say_everything(server: Server) -> None:
    sketch = BinSketch([0.0, 1.0, 2.0])
    sketch.record_many([0.5, 0.6, 9.0])
    told = window(
        device="dev-0", end_ns=START_NS + MINUTE_NS, sequence=7, covers=[5, 6],
        features={"brightness": sketch.to_bytes(), "torn": b"\x80"}, score=sketch.to_bytes(), embedding_count=4,
        outcomes=Outcomes(correct=3, wrong=1, squared_error_sum=2.5, squared_error_count=2),
        resources=Resources(
            cpu_percent=12.5, machine_cpu_percent=float("nan"), battery_percent=80.0, temperature_c=51.0,
            throttled=True, rss_bytes=10**8, disk_free_bytes=5,
        ),
        outbox=OutboxStatus(depth=3, dropped=1, merged=2),
    )  # fmt: skip  # as lines of facts
    take_in(server, [told, window(device="dev-0", end_ns=START_NS + 2 * MINUTE_NS, sequence=8)])
    found = ask(server, "devices/dev-0/telemetry", features="true")["windows"]
    first = found[0]
    assert (first["machine_cpu_percent"], first["battery_percent"], first["throttled"]) == (None, 80.0, True)
    assert (first["outbox_depth"], first["outbox_dropped"], first["outbox_merged"]) == (3, 1, 2)
    assert (first["squared_error_sum"], first["covered_windows"], first["embedding_count"]) == (2.5, 2, 4)
    assert first["features"] == {"brightness": {"0": 2, "3": 1}, "torn": None} and first["score"] == {"0": 2, "3": 1}
    assert "features" not in ask(server, "devices/dev-0/telemetry")["windows"][0]
    series = ask(server, "devices/dev-0/telemetry", step="1h")
    [point] = series["points"]
    assert series["read_from"] == "device_hour"
    assert (point["model"], point["version"], point["arm"], point["windows"]) == ("digits", "1.0.0", "main", 2)
    assert point["accuracy"] == 0.75 and point["accuracy_lower"] is not None
    assert ask(server, "devices/dev-0/telemetry", model="other")["windows"] == []
    assert get(server, "devices/dev-0/telemetry", group_by="device").status_code == 400
    assert get(server, "devices/dev-0/telemetry", limit=5000).status_code == 400


@pytest.mark.parametrize("path", ["models/digits/metrics", "devices/dev-0/telemetry"])
def test_a_parquet_file_holds_what_json_says(fleet: Server, path: str) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    parameters = {"step": "10m", "group_by": "version,label:site"} if path.startswith("models") else {"limit": 500}
    said = ask(fleet, path, **parameters)
    rows = said.get("points") or said["windows"]
    answer = get(fleet, path, format="parquet", **parameters)
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    table = pq.read_table(io.BytesIO(answer.content))
    frame = table.to_pylist()
    assert len(frame) == len(rows) > 20
    for row, point in zip(frame, rows, strict=True):
        for name, value in row.items():
            if name in point and not isinstance(point[name], dict):
                assert value == point[name], name
    assert str(table.schema.field("count").type) == "int64" and str(table.schema.field("p99_us").type) == "double"
    assert {name for name in table.column_names if name.endswith("_us")} >= {"p50_us", "p999_us", "queue_p95_us"}


def test_a_csv_file_holds_what_json_says(fleet: Server) -> None:
    parameters = {"step": "10m", "group_by": "version,device"}
    said = ask(fleet, **parameters)["points"]
    with fleet.client("viewer") as client:
        span = {"start_ns": START_NS, "end_ns": START_NS + 2 * HOUR_NS}
        answer = client.get(
            "/api/v1/models/digits/metrics", params={**span, **parameters}, headers={"Accept": "text/csv"}
        )
    assert answer.headers["content-type"].startswith("text/csv")
    assert "digits-metrics.csv" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["device"] for row in rows] == [point["device"] for point in said]
    for row, point in zip(rows, said, strict=True):
        assert float(row["p999_us"]) == point["p999_us"] and int(row["count"]) == point["count"]
        assert row["accuracy"] == ("" if point["accuracy"] is None else str(point["accuracy"]))


def test_a_label_that_a_spreadsheet_would_run_is_text_in_csv(server: Server) -> None:
    with server.engine.begin() as connection:
        labels = {"site": '=HYPERLINK("http://x")'}
        connection.execute(insert(devices).values(fleet="demo", device="dev-1", labels=labels, created_ns=1))
    take_in(server, [window(end_ns=START_NS + MINUTE_NS)])
    answer = get(server, step="1h", group_by="label:site", format="csv")
    [row] = csv.DictReader(io.StringIO(answer.text))
    assert row["label:site"] == "'" + labels["site"]


def test_an_empty_answer_is_a_file_with_headings(fleet: Server) -> None:
    text = get(fleet, "models/other/metrics", format="csv").text
    assert text.startswith("start_ns,windows,devices,count") and text.count("\n") == 1
    pq = pytest.importorskip("pyarrow.parquet")
    assert pq.read_table(io.BytesIO(get(fleet, "models/other/metrics", format="parquet").content)).num_rows == 0


def test_without_pyarrow_the_error_names_the_extra(fleet: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    answer = get(fleet, format="parquet")
    assert answer.status_code == 400 and "edgefleet[batch]" in answer.json()["detail"]
