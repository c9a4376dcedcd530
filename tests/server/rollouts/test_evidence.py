"""Which telemetry counts for which side of the comparison."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_protocol.messages import Assignment, ModelReport, Outcomes, Phase, Reported, Window
from fleet_server.rollouts.evidence import collect_evidence
from fleet_server.rollouts.measures import DeviceEvidence, Evidence, Measures
from fleet_server.rollouts.observation import Incumbent, RolloutDevice
from fleet_server.rollouts.state_machine import ExposedDevice
from fleet_server.telemetry_store.embedded import EmbeddedStore

S = 1_000_000_000
NOW = 1_700_000_000 * S
ASSIGNED = NOW - 100 * S
MANIFEST = {
    "variants": [{"name": "int8", "expected": {"accuracy": 0.9}}, {"name": "fp32", "expected": {"accuracy": 0.95}}]
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    opened = EmbeddedStore(tmp_path / "telemetry.db")
    yield opened
    opened.close()


def _write(
    store: EmbeddedStore, end_ns: int, version: str, count: int, *, device: str = "d", arm: str = "main"
) -> None:
    """A window of `count` inferences, a tenth of them with a wrong outcome, and one error."""
    window = Window(
        device=device,
        boot_id="00000000-00000001",
        sequence=end_ns // S,
        model="digits",
        version=version,
        variant="int8",
        arm="main",
        start_ns=end_ns - S,
        end_ns=end_ns,
        count=count,
        errors={"run": 1},
        outcomes=Outcomes(correct=count - count // 10, wrong=count // 10),
    )
    store.write("acme", [window])


def _row(incumbent: str | None, *, device: str = "d", assigned_ns: int = ASSIGNED, variant: str = "") -> RolloutDevice:
    assignments = [Assignment(model="digits", version=incumbent, bundle="a" * 64)] if incumbent else []
    models = [ModelReport(model="digits", phase=Phase.HEALTHY, variant=variant)]
    report = Reported(device=device, boot_id="00000000-00000001", sequence=1, at_ns=0, generation=2, models=models)
    return RolloutDevice(
        device=device,
        stage=0,
        incumbent=Incumbent(assignments=assignments),
        assigned_generation=2,
        assigned_ns=assigned_ns,
        report=report,
        online=True,
    )


def _collect(
    store: EmbeddedStore, *rows: RolloutDevice, phase: Phase = Phase.HEALTHY, bake_started_ns: int = 0
) -> Evidence:
    exposed = [ExposedDevice(device=row.device, phase=phase) for row in rows]
    return collect_evidence(
        store,
        rows,
        exposed,
        fleet="acme",
        model="digits",
        version="2.0.0",
        manifest=MANIFEST,
        bake_started_ns=bake_started_ns,
        now_ns=NOW,
    )


def _only(evidence: Evidence) -> DeviceEvidence:
    (device,) = evidence.devices
    return device


def _counts(count: int, windows: int = 1) -> Measures:
    return Measures(count=count, errors=windows, correct=count - count // 10, wrong=count // 10)


def test_each_side_counts_its_own_version_on_its_own_device(store: EmbeddedStore) -> None:
    _write(store, ASSIGNED - 10 * S, "1.0.0", 100)
    _write(store, ASSIGNED + 10 * S, "2.0.0", 50)
    _write(store, ASSIGNED + 11 * S, "2.0.0", 70, device="another")
    device = _only(_collect(store, _row("1.0.0")))
    assert (device.incumbent, device.candidate) == (_counts(100), _counts(50))


def test_an_outcome_learnt_after_the_switch_counts_for_the_version_that_answered(store: EmbeddedStore) -> None:
    _write(store, ASSIGNED - 10 * S, "1.0.0", 100)
    _write(store, ASSIGNED + 20 * S, "1.0.0", 20)
    assert _only(_collect(store, _row("1.0.0"))).incumbent == _counts(120, windows=2)


def test_what_an_earlier_rollout_of_the_same_version_left_is_not_counted_again(store: EmbeddedStore) -> None:
    _write(store, ASSIGNED - 50 * S, "2.0.0", 1000)
    _write(store, ASSIGNED + 10 * S, "2.0.0", 50)
    early = _row("1.0.0", device="early", assigned_ns=ASSIGNED - 90 * S)
    evidence = _collect(store, _row("1.0.0"), early)
    assert evidence.devices[0].candidate == _counts(50)


def test_a_window_of_a_clock_that_is_a_little_ahead_is_counted(store: EmbeddedStore) -> None:
    _write(store, NOW + 60 * S, "2.0.0", 50)
    assert _only(_collect(store, _row("1.0.0"))).candidate == _counts(50)


def test_a_device_that_ran_the_candidate_before_has_nothing_to_compare(store: EmbeddedStore) -> None:
    _write(store, ASSIGNED + 10 * S, "2.0.0", 50)
    assert _only(_collect(store, _row("2.0.0"))).candidate == Measures()


def test_without_an_incumbent_the_accuracy_of_the_running_variant_is_expected(store: EmbeddedStore) -> None:
    device = _only(_collect(store, _row(None, variant="int8")))
    assert (device.incumbent, device.expected_accuracy) == (None, 0.9)
    assert _only(_collect(store, _row(None, variant="unknown"))).expected_accuracy == 0.95


def test_a_latecomer_counts_once_its_update_ended(store: EmbeddedStore) -> None:
    late = _row("1.0.0", device="late", assigned_ns=ASSIGNED + 50 * S)
    bake = ASSIGNED + 40 * S
    assert _collect(store, late, phase=Phase.DOWNLOADING, bake_started_ns=bake).devices == ()
    assert len(_collect(store, late, phase=Phase.FAILED, bake_started_ns=bake).devices) == 1
    assert len(_collect(store, _row("1.0.0"), phase=Phase.DOWNLOADING, bake_started_ns=bake).devices) == 1


def test_a_store_that_is_away_is_said_and_gives_no_counts(store: EmbeddedStore) -> None:
    _write(store, ASSIGNED + 10 * S, "2.0.0", 50)
    store.close()
    evidence = _collect(store, _row("1.0.0"))
    assert evidence.telemetry_error
    assert _only(evidence).candidate == Measures()
