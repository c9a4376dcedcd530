"""What was set aside, and how far clocks are off, through the API and the `fleet` command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert
from typer.testing import CliRunner, Result

from fleet_protocol.messages import Outcomes, Window
from fleet_server.cli import app
from fleet_server.database.tables import devices
from fleet_server.ingest import quarantine
from fleet_server.ingest.batch_checks import Dropped, SetAside
from fleet_server.ingest.checks import Fault, Reason
from fleet_server.ingest.clocks import write_clocks
from tests.server.api.running import Server, running_server
from tests.server.api.test_telemetry import START_NS, take_in
from tests.server.telemetry_store.windows import MINUTE_NS, window

OLD, SPAN = Fault(Reason.TOO_OLD, "it ended in 1970"), Fault(Reason.SPAN, "it spans a century")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two liars and a device whose clock is off; the tests only read."""
    with running_server(tmp_path_factory.mktemp("quarantine")) as running:
        with running.engine.begin() as connection:
            for name in ("dev-1", "dev-2", "pi-slow"):
                connection.execute(insert(devices).values(fleet="demo", device=name, labels={}, created_ns=1))
            for number in range(12):
                _set_aside(connection, window(sequence=number + 1), OLD)
            endless = Outcomes(squared_error_sum=float("inf"), squared_error_count=1)
            _set_aside(connection, window(device="dev-2", errors={"\x1b[2Jx": 2}, outcomes=endless), OLD, SPAN)
            dropped = Dropped(device="dev-2", fault=Fault(Reason.SKETCH_UNREADABLE, "latency cannot be read"))
            quarantine.record(connection, "demo", [], [dropped], now_ns=9)
            quarantine.record(connection, "other", [SetAside(window=window(), faults=[SPAN])], [], now_ns=9)
            rows = [
                {"device": "pi-slow", "skew_ns": -3_600 * 10**9, "late_ns": 2 * 10**9, "measured_ns": 7},
                {"device": "dev-1", "skew_ns": -(10**8), "late_ns": 7_200 * 10**9, "measured_ns": 7},
            ]
            write_clocks(connection, "demo", rows)
        take_in(running, [window(sequence=40, end_ns=START_NS + MINUTE_NS)])
        yield running


def _set_aside(connection: Any, one: Window, *faults: Fault) -> None:
    quarantine.record(connection, "demo", [SetAside(window=one, faults=faults)], [], now_ns=5)


def get(server: Server, path: str, status: int = 200, **parameters: Any) -> Any:
    with server.client("viewer") as client:
        answer = client.get(f"/api/v1/{path}", params=parameters)
    assert answer.status_code == status, answer.text
    return answer.json()


def fleet(server: Server, *arguments: str) -> Result:
    environment = {"EDGEFLEET_SERVER": server.url, "EDGEFLEET_API_KEY": server.keys["viewer"], "COLUMNS": "200"}
    return CliRunner().invoke(app, list(arguments), env=environment)


def test_windows_that_were_set_aside_come_newest_first_in_pages(server: Server) -> None:
    found, cursor = [], ""
    while cursor is not None:
        page = get(server, "quarantine", limit=5, cursor=cursor)
        found += page["items"]
        cursor = page["next_cursor"]
    assert [(one["device"], one["sequence"]) for one in found] == [
        ("dev-2", 1), *(("dev-1", number) for number in range(12, 0, -1)),
    ]  # fmt: skip
    assert found[0]["window"]["outcomes"]["squared_error_sum"] == "inf"
    assert [reason["reason"] for reason in found[0]["reasons"]] == ["too_old", "span"]


def test_windows_are_narrowed_to_a_device_and_a_reason(server: Server) -> None:
    assert [one["device"] for one in get(server, "quarantine", reason="span")["items"]] == ["dev-2"]
    assert len(get(server, "quarantine", device="dev-1")["items"]) == 12
    assert get(server, "quarantine", device="dev-1", reason="span")["items"] == []


def test_counts_come_by_device_and_reason_in_pages(server: Server) -> None:
    wanted = [
        ("dev-1", "too_old", 12),
        ("dev-2", "sketch_unreadable", 1),
        ("dev-2", "span", 1),
        ("dev-2", "too_old", 1),
    ]
    found, cursor = [], ""
    while cursor is not None:
        page = get(server, "quarantine/counts", limit=2, cursor=cursor)
        found += [(one["device"], one["reason"], one["count"]) for one in page["items"]]
        cursor = page["next_cursor"]
    assert found == wanted


def test_bad_questions_get_a_problem(server: Server) -> None:
    for bad in ({"device": "../x"}, {"reason": "because"}, {"cursor": "!!"}, {"cursor": "YWJj"}, {"limit": 0}):
        assert get(server, "quarantine", 400, **bad)["detail"]
    with server.client(None) as client:
        assert client.get("/api/v1/quarantine").status_code == 401


def test_a_clock_that_is_off_is_told_apart_from_a_device_that_is_late(server: Server) -> None:
    slow, late = get(server, "devices/pi-slow")["clock"], get(server, "devices/dev-1")["clock"]
    assert (slow["skew_s"], slow["is_off"], slow["late_s"]) == (-3600.0, True, 2.0)
    assert (late["is_off"], late["late_s"]) == (False, 7200.0)
    assert get(server, "devices/dev-2")["clock"] is None
    assert get(server, "devices/dev-2")["not_counted"] == {"too_old": 1, "span": 1, "sketch_unreadable": 1}
    shown = fleet(server, "devices", "show", "pi-slow").output
    assert "3,600 s behind" in shown
    shown = fleet(server, "devices", "show", "dev-1").output
    assert "right" in shown and "7,200 s after its end" in shown and "12 too_old" in shown


def test_the_command_shows_what_was_set_aside(server: Server) -> None:
    shown = fleet(server, "devices", "quarantine", "dev-2").output
    assert "it spans a century" in shown and "sketch_unreadable" in shown and "\x1b[2J" not in shown
    said = msgspec.json.decode(fleet(server, "devices", "quarantine", "--json").output)
    assert (len(said["counts"]), len(said["windows"])) == (4, 13)
    assert "Nothing was set aside" in fleet(server, "devices", "quarantine", "pi-slow").output


def test_the_telemetry_command_shows_and_writes_series(server: Server, tmp_path: Path) -> None:
    span = ("--start", str(START_NS), "--end", str(START_NS + 60 * MINUTE_NS), "--step", "1h")
    shown = fleet(server, "telemetry", "digits", *span, "--group-by", "version")
    assert shown.exit_code == 0 and "1.0.0" in shown.output and "VERSION" in shown.output
    assert "Nothing was counted" in fleet(server, "telemetry", "digits").output
    for kind in ("csv", "parquet"):
        out = tmp_path / f"day.{kind}"
        done = fleet(server, "telemetry", "digits", *span, "--out", str(out), "--json")
        assert done.exit_code == 0, done.output
        assert out.stat().st_size == msgspec.json.decode(done.output)["size_bytes"] > 100
    pq = pytest.importorskip("pyarrow.parquet")
    assert pq.read_table(tmp_path / "day.parquet").column("count").to_pylist() == [3]
    own = fleet(server, "telemetry", "--device", "dev-1", *span, "--json")
    assert [point["windows"] for point in msgspec.json.decode(own.output)["points"]] == [1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["day.csv", "day.parquet"]


def test_the_telemetry_command_refuses_what_makes_no_sense(server: Server, tmp_path: Path) -> None:
    for arguments in (
        (),
        ("digits", "--device", "dev-1"),
        ("digits", "--out", "x.xlsx"),
        ("--device", "dev-1", "--label", "a=b"),
        ("digits", "--step", "soon"),
        ("digits", "--out", str(tmp_path / "no" / "such.csv")),
    ):
        done = fleet(server, "telemetry", *arguments)
        assert done.exit_code != 0 and str(done.exception), arguments
