"""The questions over HTTP and by command: parameters, refusals, findings and their acknowledgement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import insert
from typer.testing import CliRunner

from fleet_server.cli import app
from fleet_server.database.tables import devices, models
from fleet_server.drift.findings import DriftReport, Severity, SignalFinding, SignalKind, Verdict
from fleet_server.drift.open_findings import keep_findings
from tests.server.api.running import Server, running_server
from tests.server.drift.fleets import MODEL, VERSION
from tests.server.drift.hours import DAY_START_NS, HOUR_NS, PlacedFleet
from tests.server.drift.test_report import publish

SPAN: dict[str, str | int] = {
    "model": MODEL, "version": VERSION, "start_ns": DAY_START_NS, "end_ns": DAY_START_NS + 24 * HOUR_NS,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(Path(tmp_path_factory.mktemp("drift"))) as running:
        fleet = PlacedFleet(41, devices=24)
        rows = [
            {"fleet": running.services.fleet, "device": name, "labels": facts.labels, "created_ns": 1}
            for name, facts in fleet.facts.items()
        ]
        with running.engine.begin() as connection:
            connection.execute(insert(models).values(model=MODEL, created_ns=1))
            connection.execute(insert(devices), rows)
        publish(running.engine, fleet.made)
        windows = fleet.windows(hours=12, moved=1.5, site="lisbon", from_hour=4, values=30)
        running.store.write(running.services.fleet, windows)
        yield running


def test_an_answer_is_the_struct_that_reports_are_made_of(server: Server) -> None:
    with server.client("viewer") as client:
        answer = client.get("/api/v1/drift", params={**SPAN, "detail": "true"})
    assert answer.status_code == 200, answer.text
    (report,) = msgspec.convert(answer.json()["reports"], list[DriftReport])
    brightness = next(signal for signal in report.signals if signal.signal == "brightness")
    assert brightness.verdict is Verdict.DRIFT
    assert brightness.onset_earliest_ns is not None and brightness.onset_latest_ns is not None
    assert brightness.onset_earliest_ns <= DAY_START_NS + 4 * HOUR_NS < brightness.onset_latest_ns
    assert brightness.distribution is not None and brightness.timeline


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"against": "selector:site=oslo", "seen_selector": "site=lisbon"}, 200),
        ({"expected_selector": "site=oslo", "seen_selector": "site=lisbon"}, 200),
        ({"against": "fleet", "seen_device": "device-003"}, 200),
        ({"seen_device": "device-003"}, 200),
        ({"seen_variant": "int8", "seen_arm": "main"}, 200),
        ({"expected_start_ns": DAY_START_NS, "expected_end_ns": DAY_START_NS + 3 * HOUR_NS}, 200),
        ({"against": "last-week"}, 200),
        ({"against": "same-hours"}, 200),
        ({"against": "version:9.9.9"}, 404),
        ({"against": "yesterday"}, 400),
        ({"against": "fleet"}, 400),
        ({"seen_selector": "lisbon"}, 400),
        ({"against": "last-week", "expected_version": "1.0.0"}, 400),
        ({"expected_start_ns": 5, "expected_end_ns": 4}, 400),
        ({"detail": "perhaps"}, 400),
    ],
)
def test_each_question_has_its_answer_or_its_refusal(server: Server, asked: dict[str, str | int], status: int) -> None:
    with server.client("viewer") as client:
        answer = client.get("/api/v1/drift", params={**SPAN, **asked})
    assert answer.status_code == status, answer.text


def test_a_finding_is_listed_and_acknowledged_by_who_may(server: Server) -> None:
    finding = SignalFinding(
        signal="brightness",
        kind=SignalKind.FEATURE,
        verdict=Verdict.DRIFT,
        severity=Severity.HIGH,
        sentence="it moved.",
    )
    with server.engine.begin() as connection:
        keep_findings(
            connection,
            fleet=server.services.fleet,
            model=MODEL,
            version=VERSION,
            found=[finding],
            look_ns=time.time_ns(),
        )
    with server.client("viewer") as client:
        (listed,) = client.get("/api/v1/drift/findings").json()["findings"]
        assert client.get("/api/v1/drift/findings", params={"model": "other"}).json()["findings"] == []
        assert client.post(f"/api/v1/drift/findings/{listed['id']}/acknowledge").status_code == 403
    environment = {"EDGEFLEET_SERVER": server.url, "EDGEFLEET_API_KEY": server.keys["operator"], "COLUMNS": "200"}
    shown = CliRunner().invoke(app, ["drift", "findings"], env=environment)
    assert (shown.exit_code, "it moved." in shown.output) == (0, True), shown.output
    done = CliRunner().invoke(app, ["drift", "acknowledge", listed["id"]], env=environment)
    assert done.exit_code == 0, done.output
    assert "acknowledged by" in done.output
    assert CliRunner().invoke(app, ["drift", "acknowledge", "nobody"], env=environment).exit_code == 1
    with server.client("viewer") as client:
        (listed,) = client.get("/api/v1/drift/findings").json()["findings"]
    assert listed["acknowledged_by"]


def test_the_command_asks_every_question(server: Server) -> None:
    environment = {"EDGEFLEET_SERVER": server.url, "EDGEFLEET_API_KEY": server.keys["viewer"], "COLUMNS": "200"}
    for options in (["--against", "yesterday"], ["--selector", "lisbon"]):
        refused = CliRunner().invoke(app, ["drift", "show", MODEL, VERSION, *options], env=environment)
        assert refused.exit_code != 0
    shown = CliRunner().invoke(app, ["drift", "show", MODEL, VERSION, "--against", "last-week"], env=environment)
    assert shown.exit_code == 0, shown.output
    assert "no statement is possible against the week before" in shown.output
