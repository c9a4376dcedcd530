"""What operators read: devices, telemetry, KPIs, ingest, readiness, metrics; and hostile requests."""

from __future__ import annotations

import socket
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, update

from fleet_protocol.messages import ModelReport, Outcomes, Phase, Reported, ShadowAgreement
from fleet_server.api.fleet_state import missing_ranges
from fleet_server.database.tables import devices, ingest_ledger
from fleet_server.ingest.device_records import record_reports
from tests.server.api.running import Server
from tests.server.telemetry_store.windows import latency_of, window

_S = 10**9


def _enrol(server: Server, *names: str, **labels: str) -> None:
    with server.client("operator") as client:
        for name in names:
            assert client.post(f"/api/v1/devices/{name}/enrol", json={"labels": labels}).status_code == 201


def test_devices_come_in_pages_that_lose_and_repeat_nothing(server: Server) -> None:
    names = [f"pi-{number:02}" for number in range(7)]
    _enrol(server, *names)
    found, cursor = [], ""
    with server.client("viewer") as client:
        while cursor is not None:
            page = client.get("/api/v1/devices", params={"limit": 3, "cursor": cursor}).json()
            assert len(page["items"]) <= 3
            found += [device["device"] for device in page["items"]]
            cursor = page["next_cursor"]
        assert found == names
        for bad in ("!!!", "ÿ", "x" * 600):
            assert client.get("/api/v1/devices", params={"cursor": bad}).status_code == 400
        assert client.get("/api/v1/devices", params={"limit": 501}).status_code == 400


def test_devices_are_filtered_by_labels_and_by_being_online(server: Server) -> None:
    _enrol(server, "a", site="lab", hw="pi4")
    _enrol(server, "b", site="lab")
    _enrol(server, "c", site="x' OR 1=1 --")
    with server.engine.begin() as connection:
        connection.execute(update(devices).where(devices.c.device == "b").values(online=True))

    with server.client("viewer") as client:

        def names(**parameters: object) -> list[str]:
            answer = client.get("/api/v1/devices", params=parameters)  # type: ignore[arg-type]  # the test's own values
            return [device["device"] for device in answer.json()["items"]]

        assert names(label="site=lab") == ["a", "b"]
        assert names(label=["site=lab", "hw=pi4"]) == ["a"]
        assert names(label="site=x' OR 1=1 --") == ["c"]
        assert names(label="absent=x") == []
        assert names(online="true") == ["b"]
        for bad in ("noequals", 'ba"d=x', "$.x'=y", "=x"):
            assert client.get("/api/v1/devices", params={"label": bad}).status_code == 400, bad


def test_labels_are_set_removed_and_checked(server: Server) -> None:
    _enrol(server, "pi-1", site="lab", hw="pi4")
    with server.client("operator") as client:
        changed = client.patch("/api/v1/devices/pi-1", json={"labels": {"site": None, "room": "3"}}).json()
        assert changed["labels"] == {"hw": "pi4", "room": "3"}
        for bad in ({"bad key": "x"}, {"k": "v" * 129}, {f"k{n}": "v" for n in range(65)}):
            assert client.patch("/api/v1/devices/pi-1", json={"labels": bad}).status_code == 400
        assert client.patch("/api/v1/devices/pi-1", json={"labels": {}, "more": 1}).status_code == 400
        assert client.get("/api/v1/devices/pi-1").json()["labels"] == {"hw": "pi4", "room": "3"}
        assert client.get("/api/v1/devices/pi-2").status_code == 404


def test_percentiles_are_those_of_merged_histograms(server: Server) -> None:
    now_ns = time.time_ns()
    fast = window(end_ns=now_ns - 2 * _S, latency=latency_of(*[100.0] * 98), count=98, outcomes=Outcomes(correct=3))
    slow = window(
        end_ns=now_ns - _S,
        device="dev-2",
        latency=latency_of(10_000.0, 10_000.0),
        count=2,
        errors={"timeout": 25},
        outcomes=Outcomes(correct=0, wrong=1),
    )
    server.store.write("demo", [fast, slow])
    with server.client("viewer") as client:
        answer = client.get("/api/v1/models/digits/metrics", params={"step_s": 86_400 * 365}).json()
        [point] = answer["points"]
        assert (point["windows"], point["count"], point["errors"]) == (2, 100, 25)
        assert point["error_rate"] == pytest.approx(0.2)
        assert point["accuracy"] == pytest.approx(0.75)
        assert point["p50_us"] == pytest.approx(100, rel=0.01)
        assert point["p95_us"] == pytest.approx(100, rel=0.01), "an average of the two devices' p95 would be 5050"
        assert point["p99_us"] == pytest.approx(10_000, rel=0.01)
        assert client.get("/api/v1/models/other/metrics").json()["points"] == []
        kpis = client.get("/api/v1/kpis").json()
        assert (kpis["predictions"], kpis["p99_us"]) == (100, point["p99_us"])
        own = client.get("/api/v1/devices/dev-2/telemetry").json()["windows"]
        assert [(w["count"], w["errors"], w["wrong"]) for w in own] == [(2, {"timeout": 25}, 1)]
        for bad in ({"start_ns": 5, "end_ns": 5}, {"step_s": 0}, {"start_ns": 0, "step_s": 1}, {"end_ns": 2**63}):
            assert client.get("/api/v1/models/digits/metrics", params=bad).status_code == 400


def test_a_shadows_disagreement_is_told_per_arm_and_per_window(server: Server) -> None:
    now_ns = time.time_ns()
    shadow = ShadowAgreement(compared=40, disagreed=10)
    server.store.write(
        "demo",
        [
            window(sequence=1, end_ns=now_ns - _S, arm="next", count=0, latency=b"", shadow=shadow),
            window(sequence=2, end_ns=now_ns - _S),
        ],
    )

    with server.client("viewer") as client:
        [point] = client.get("/api/v1/models/digits/metrics", params={"arm": "next"}).json()["points"]
        assert (point["shadow_compared"], point["shadow_disagreed"], point["shadow_disagreement"]) == (40, 10, 0.25)
        [point] = client.get("/api/v1/models/digits/metrics", params={"arm": "main"}).json()["points"]
        assert (point["shadow_compared"], point["shadow_disagreement"]) == (0, None)
        windows = client.get("/api/v1/devices/dev-1/telemetry").json()["windows"]
        assert {w["arm"]: (w["shadow_compared"], w["shadow_disagreed"]) for w in windows} == {
            "next": (40, 10), "main": (0, 0),
        }  # fmt: skip


def test_a_device_shows_every_arm_it_reports_spelt_out(server: Server) -> None:
    _enrol(server, "pi-1")
    reported = Reported(
        device="pi-1",
        boot_id="00000000-00000001",
        sequence=1,
        at_ns=1,
        models=[
            ModelReport(model="digits", phase=Phase.HEALTHY),
            ModelReport(model="digits", phase=Phase.WARMING, arm="b", weight=0.2),
            ModelReport(model="digits", phase=Phase.HEALTHY, arm="next", shadow=True),
        ],
    )
    with server.engine.begin() as connection:
        record_reports(connection, "demo", [reported], now_ns=1)

    with server.client("viewer") as client:
        models = client.get("/api/v1/devices/pi-1").json()["reported"]["models"]

    assert [(m["arm"], m["phase"], m["weight"], m["shadow"]) for m in models] == [
        ("main", "HEALTHY", 1.0, False), ("b", "WARMING", 0.2, False), ("next", "HEALTHY", 1.0, True),
    ]  # fmt: skip


def test_a_fleet_without_data_has_no_rates_instead_of_false_ones(server: Server) -> None:
    with server.client("viewer") as client:
        kpis = client.get("/api/v1/kpis").json()
    assert kpis["predictions"] == 0
    assert [kpis[name] for name in ("p50_us", "p99_us", "error_rate", "accuracy")] == [None] * 4


def test_ingest_tells_what_is_missing(server: Server) -> None:
    row = {"fleet": "demo", "windows": 5, "repeats": 2, "updated_ns": 1}
    rows = [
        {**row, "device": "a", "boot_id": "00000000-00000001", "ranges": [[1, 5]]},
        {**row, "device": "b", "boot_id": "00000000-00000002", "ranges": [[3, 4], [8, 9]]},
        {**row, "device": "c", "boot_id": "00000000-00000003", "ranges": [[2, 2]], "fleet": "other"},
    ]
    with server.engine.begin() as connection:
        connection.execute(insert(ingest_ledger), rows)
    with server.client("viewer") as client:
        found = client.get("/api/v1/ingest").json()
    assert (found["windows"], found["repeats"], found["missing"], found["boots"]) == (10, 4, 5, 2)
    [incomplete] = found["incomplete"]
    assert (incomplete["device"], incomplete["ranges"]) == ("b", [[1, 2], [5, 7]])


@given(st.sets(st.integers(1, 60), min_size=1), st.randoms())
def test_missing_and_present_ranges_together_are_everything(present: set[int], random: object) -> None:
    ranges = [[n, n] for n in present]
    random.shuffle(ranges)  # type: ignore[attr-defined]  # Hypothesis gives a random.Random
    missing = {n for low, high in missing_ranges(ranges) for n in range(low, high + 1)}
    assert missing == set(range(1, max(present) + 1)) - present


def test_readiness_names_what_is_away_and_health_stays(server: Server) -> None:
    with server.client(None) as client:
        assert client.get("/ready").json() == {"ready": True}
        server.store.close()
        away = client.get("/ready")
        assert away.status_code == 503
        assert list(away.json()["reasons"]) == ["telemetry_store"]
        assert client.get("/health").status_code == 200


def test_metrics_are_prometheus_text(server: Server) -> None:
    _enrol(server, "pi-1")
    with server.client(None) as client:
        client.get("/nothing")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'edgefleet_http_requests_total{method="GET",status="404"} 1' in lines
    assert "edgefleet_ingest_windows_total 7" in lines
    assert "edgefleet_devices 1" in lines
    assert "pi-1" not in answer.text


def test_every_error_is_a_problem(server: Server) -> None:
    with server.client() as client:
        cases = [
            (client.get("/nothing"), 404),
            (client.get("/api/v1/devices/"), 404),
            (client.delete("/api/v1/devices/pi-1"), 405),
            (client.get("/api/v1/devices/UPPER"), 400),
            (client.get("/api/v1/devices", params={"limit": "x"}), 400),
            (client.post("/api/v1/rollouts", content=b"{not json"), 400),
            (client.post("/api/v1/rollouts", content=b"\xff\xfe"), 400),
            (client.post("/api/v1/rollouts", content=b"[" * 50_000), 400),
            (client.post("/api/v1/rollouts", json={"model": "m", "version": "1.0.0", "extra": 1}), 400),
        ]
    for answer, status in cases:
        assert answer.status_code == status, f"{answer.request.method} {answer.url}: {answer.text}"
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == status
        assert set(problem) >= {"type", "title", "status", "detail", "instance"}
    assert cases[2][0].headers["allow"]


def test_a_fault_of_the_server_tells_nothing_of_its_inside(server: Server) -> None:
    with server.engine.begin() as connection:
        row = {"fleet": "demo", "device": "a", "boot_id": "0", "ranges": "broken", "windows": 1, "updated_ns": 1}
        connection.execute(insert(ingest_ledger).values(row))
    with server.client("viewer") as client:
        answer = client.get("/api/v1/ingest")
    assert answer.status_code == 500
    assert answer.json()["detail"] == "the server's log says what went wrong"
    assert "Traceback" not in answer.text


def test_the_description_covers_every_resource(server: Server) -> None:
    with server.client(None) as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert client.get("/docs").status_code == 200
    assert "/api/v1/artifacts/{sha256}" in paths
    for operations in paths.values():
        for operation in operations.values():
            assert "application/problem+json" in operation["responses"]["default"]["content"]
            assert "422" not in operation["responses"]


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/rollouts HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_broken_http_harms_only_its_own_connection(server: Server, raw: bytes) -> None:
    port = httpx.URL(server.url).port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(raw)
        assert connection.recv(100).startswith(b"HTTP/1.1 4")
    assert httpx.get(f"{server.url}/health").status_code == 200
