"""From stored windows to a report in plain words: what is read, left out, and never claimed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sqlalchemy import Engine, insert
from typer.testing import CliRunner

from edge_agent.telemetry.features import extract
from fleet_protocol.bundle_folder import read_manifest as read_bundle_manifest
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import Window
from fleet_server.cli import app
from fleet_server.database.engine import open_engine
from fleet_server.database.tables import metadata, models, versions
from fleet_server.drift import Verdict, read_drift, reading
from fleet_server.drift.findings import Severity
from fleet_server.errors import InvalidRequestError, NotFoundError
from fleet_server.telemetry_store import EmbeddedStore
from models.digits.recipe import HERE, HOLDOUT
from tests.server.api.running import Server, running_server
from tests.server.drift.fleets import MODEL, T0_NS, VERSION, S, UnequalFleet, manifest, window

FLEET = "demo"


class Stored:
    """A catalogue and a telemetry store on disk."""

    def __init__(self, folder: Path) -> None:
        self.engine: Engine = open_engine(f"sqlite:///{folder / 'fleet.db'}")
        metadata.create_all(self.engine)
        self.store = EmbeddedStore(folder / "telemetry.db")
        with self.engine.begin() as connection:
            connection.execute(insert(models).values(model=MODEL, created_ns=1))

    def publish(self, made: Manifest) -> None:
        publish(self.engine, made)

    def read(self, version: str | None = VERSION, *, start_ns: int = T0_NS - 3600 * S) -> Any:
        found = read_drift(
            self.engine, self.store, fleet=FLEET, model=MODEL, version=version, start_ns=start_ns, end_ns=T0_NS
        )
        return found[0] if version else found


def publish(engine: Engine, made: Manifest) -> None:
    row = {
        "model": made.model,
        "version": made.version,
        "bundle": made.version.rjust(64, "0"),
        "manifest": msgspec.to_builtins(made),
        "published_by": "test",
        "published_ns": 1,
    }
    with engine.begin() as connection:
        connection.execute(insert(versions).values(row))


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    made = Stored(tmp_path)
    yield made
    made.store.close()
    made.engine.dispose()


def digits_windows(made: Manifest, *, brightness: float, devices: int = 10) -> list[Window]:
    """The holdout's 500 images dealt out to devices, seen through the device's own extractors."""
    with np.load(HOLDOUT, allow_pickle=False) as archive:
        images = archive["images"]
    found = []
    for number, share in enumerate(np.array_split(images, devices)):
        tensor = (share[:, None].astype(np.float32) * brightness).astype(np.float32)
        features = {reference.name: extract(reference, {"image": tensor}) for reference in made.features}
        found.append(window(made, f"camera-{number}", features))
    return found


def test_digits_that_got_darker_are_found_and_the_same_digits_are_not(stored: Stored) -> None:
    made = read_bundle_manifest(HERE / "bundles" / "1.1.0")
    stored.publish(made)
    stored.store.write(FLEET, digits_windows(made, brightness=1.0))
    same = stored.read("1.1.0")
    features = [signal for signal in same.signals if signal.kind == "feature"]
    assert {signal.verdict for signal in features} == {Verdict.NOT_FOUND}

    darker = [msgspec.structs.replace(w, sequence=2) for w in digits_windows(made, brightness=0.85)]
    stored.store.write(FLEET, [msgspec.structs.replace(w, end_ns=T0_NS - 3700 * S, start_ns=0) for w in darker])
    found = read_drift(
        stored.engine,
        stored.store,
        fleet=FLEET,
        model=MODEL,
        version="1.1.0",
        start_ns=0,
        end_ns=T0_NS - 3600 * S,
    )[0]
    assert found.verdict is Verdict.DRIFT
    brightness = next(signal for signal in found.signals if signal.signal == "brightness")
    assert brightness.verdict is Verdict.DRIFT
    assert brightness.effect is not None
    assert brightness.effect.shift_interval is not None
    assert brightness.effect.shift_interval[1] < 0
    assert brightness.severity is not Severity.NONE
    assert "brightness" in found.sentence


def test_too_few_devices_are_not_enough_evidence_however_much_they_saw(stored: Stored) -> None:
    fleet = UnequalFleet(1)
    stored.publish(fleet.manifest)
    stored.store.write(FLEET, fleet.windows(4, moved=3.0))
    report = stored.read()
    assert report.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert {signal.verdict for signal in report.signals} == {Verdict.NOT_ENOUGH_EVIDENCE}
    assert all(signal.p_value is None and "not enough evidence" in signal.sentence for signal in report.signals)
    assert "no drift" not in report.sentence


def test_devices_that_saw_little_are_left_out_and_counted(stored: Stored) -> None:
    fleet = UnequalFleet(2)
    stored.publish(fleet.manifest)
    few = {"mean": np.zeros(5), "std": np.ones(5)}
    quiet = [window(fleet.manifest, f"quiet-{n}", few) for n in range(3)]
    stored.store.write(FLEET, [*fleet.windows(6), *quiet])
    signal = stored.read().signals[0]
    assert (signal.devices, signal.devices_left_out) == (6, 3)


def test_a_version_without_telemetry_or_reference_is_not_enough_evidence(stored: Stored) -> None:
    stored.publish(UnequalFleet(3).manifest)
    stored.publish(manifest({}, version="2.0.0"))
    assert stored.read().verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert "ships no reference" in stored.read("2.0.0").sentence


def test_each_version_is_held_against_its_own_reference(stored: Stored) -> None:
    old, new = UnequalFleet(4), UnequalFleet(5)
    stored.publish(old.manifest)
    stored.publish(msgspec.structs.replace(new.manifest, version="1.1.0"))
    stored.publish(msgspec.structs.replace(new.manifest, version="1.2.0"))
    stored.store.write(FLEET, old.windows(8, moved=2.0))
    later = [msgspec.structs.replace(w, version="1.1.0", sequence=2) for w in new.windows(8)]
    stored.store.write(FLEET, later)
    reports = stored.read(None)
    assert [(report.version, report.verdict) for report in reports] == [
        ("1.1.0", Verdict.NOT_FOUND),
        ("1.0.0", Verdict.DRIFT),
    ]


def test_values_beyond_the_reference_count_at_its_ends_and_unusable_ones_are_told_apart(stored: Stored) -> None:
    made = manifest({"mean": np.linspace(0, 1, 200)})
    stored.publish(made)
    random = np.random.default_rng(6)
    stored.store.write(
        FLEET,
        [
            window(made, f"d{n}", {"mean": np.concatenate([random.uniform(5, 6, 40), [np.nan, np.inf]])})
            for n in range(6)
        ],
    )
    (signal,) = stored.read().signals
    assert (signal.beyond_reference, signal.unusable, signal.values) == (240, 12, 240)
    assert signal.verdict is Verdict.DRIFT
    assert signal.effect is not None
    assert signal.effect.shift_rank == pytest.approx(0.5, abs=0.02)
    assert "12 more values were missing" in signal.sentence


def test_a_torn_sketch_or_an_absurd_count_takes_nothing_else_with_it(stored: Stored) -> None:
    fleet = UnequalFleet(7)
    stored.publish(fleet.manifest)
    first, second, *others = fleet.windows(9)
    torn = msgspec.structs.replace(first, features={**first.features, "mean": b"\xff"})
    absurd = msgspec.structs.replace(second, classes={0: 2**63 - 1, 1: 2**63 - 1, 999: 5})
    stored.store.write(FLEET, [torn, absurd, *others])
    mean, std, classes = stored.read().signals
    assert (mean.torn_sketches, mean.devices, std.devices) == (1, 8, 9)
    assert classes.devices == 9
    assert classes.values > 2**40
    assert classes.p_value is not None
    assert 0 <= classes.p_value <= 1


def test_more_windows_than_one_answer_reads_are_told(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_WINDOWS", 6)
    fleet = UnequalFleet(8)
    stored.publish(fleet.manifest)
    stored.store.write(FLEET, fleet.windows(8))
    report = stored.read()
    assert (report.windows, report.windows_truncated) == (6, True)
    assert report.start_ns == T0_NS - 60 * S


def test_what_does_not_exist_or_does_not_add_up_is_refused(stored: Stored) -> None:
    with pytest.raises(NotFoundError):
        stored.read("9.9.9")
    made = manifest({"mean": np.linspace(0, 1, 50)})
    stored.publish(made)
    with pytest.raises(NotFoundError, match="sent telemetry"):
        stored.read(None)
    broken = msgspec.structs.replace(made.features[0], counts=[1, 2])
    stored.publish(msgspec.structs.replace(made, version="3.0.0", features=[broken]))
    with pytest.raises(InvalidRequestError, match="2 counts for"):
        stored.read("3.0.0")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path) as running:
        yield running


def test_the_api_answers_with_a_report_and_refuses_what_is_no_model(server: Server) -> None:
    fleet = UnequalFleet(9)
    with server.engine.begin() as connection:
        connection.execute(insert(models).values(model=MODEL, created_ns=1))
    publish(server.engine, fleet.manifest)
    server.store.write(server.services.fleet, fleet.windows(8, moved=2.0))
    query: dict[str, str | int] = {"model": MODEL, "start_ns": T0_NS - 3600 * S, "end_ns": T0_NS}
    with server.client("viewer") as client:
        answer = client.get("/api/v1/drift", params=query)
        assert answer.status_code == 200, answer.text
        (report,) = answer.json()["reports"]
        assert report["verdict"] == "drift"
        assert {signal["signal"] for signal in report["signals"]} == {"mean", "std", "classes"}
        assert client.get("/api/v1/drift", params={**query, "model": "../x"}).status_code == 400
        assert client.get("/api/v1/drift", params={**query, "model": "unknown"}).status_code == 404
        assert client.get("/api/v1/drift").status_code == 400
    with server.client(None) as client:
        assert client.get("/api/v1/drift", params=query).status_code == 401


def test_the_command_shows_each_signal_with_its_verdict(server: Server) -> None:
    fleet = UnequalFleet(10)
    with server.engine.begin() as connection:
        connection.execute(insert(models).values(model=MODEL, created_ns=1))
    publish(server.engine, fleet.manifest)
    now_ns = time.time_ns()
    found = [msgspec.structs.replace(w, start_ns=now_ns - 60 * S, end_ns=now_ns - S) for w in fleet.windows(8, moved=2)]
    server.store.write(server.services.fleet, found)
    environment = {"EDGEFLEET_SERVER": server.url, "EDGEFLEET_API_KEY": server.keys["viewer"], "COLUMNS": "160"}
    shown = CliRunner().invoke(app, ["drift", "show", MODEL, VERSION], env=environment)
    assert shown.exit_code == 0, shown.output
    assert f"{MODEL} {VERSION}: " in shown.output
    assert "against the reference" in shown.output
    assert "on 8 of 8 devices" in shown.output
    assert "not_enough_evidence" not in shown.output
    given = CliRunner().invoke(app, ["drift", "show", MODEL, "--json"], env=environment)
    assert msgspec.json.decode(given.stdout)["reports"][0]["verdict"] == "drift"
