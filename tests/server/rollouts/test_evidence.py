"""Which telemetry counts for which side of the comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Assignment, ModelReport, Outcomes, Phase, Reported, Resources, Window
from fleet_server.rollouts.evidence import MAX_CONTROL_STARTS, collect_evidence, matched_starts
from fleet_server.rollouts.measures import DeviceEvidence, Evidence, Measures
from fleet_server.rollouts.observation import Incumbent, RolloutDevice
from fleet_server.rollouts.policy import Gate, OutcomeAccuracyGate
from fleet_server.rollouts.state_machine import ExposedDevice
from fleet_server.telemetry_store.embedded import EmbeddedStore
from fleet_server.telemetry_store.port import DeviceTotals, Slice

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


def _row(
    incumbent: str | None,
    *,
    device: str = "d",
    assigned_ns: int = ASSIGNED,
    variant: str = "",
    error: str = "",
    online: bool = True,
    last_seen_ns: int = 0,
    is_control: bool = False,
) -> RolloutDevice:
    assignments = [Assignment(model="digits", version=incumbent, bundle="a" * 64)] if incumbent else []
    models = [ModelReport(model="digits", phase=Phase.HEALTHY, variant=variant, error=error)]
    report = Reported(device=device, boot_id="00000000-00000001", sequence=1, at_ns=0, generation=2, models=models)
    return RolloutDevice(
        device=device,
        stage=0,
        incumbent=Incumbent(assignments=assignments),
        assigned_generation=2,
        assigned_ns=assigned_ns,
        report=report,
        online=online,
        last_seen_ns=last_seen_ns,
        is_control=is_control,
    )


def _collect(
    store: EmbeddedStore,
    *rows: RolloutDevice,
    phase: Phase = Phase.HEALTHY,
    bake_started_ns: int = 0,
    gates: Sequence[Gate] = (),
) -> Evidence:
    exposed = [ExposedDevice(device=row.device, phase=phase) for row in rows if not row.is_control]
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
        gates=gates,
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


def test_latency_memory_temperature_and_classes_are_those_of_the_device_and_its_version(store: EmbeddedStore) -> None:
    windows = [
        Window(
            device="d",
            boot_id="00000000-00000001",
            sequence=number,
            model="digits",
            version="2.0.0",
            variant="int8",
            arm=arm,
            start_ns=ASSIGNED,
            end_ns=ASSIGNED + number * S,
            count=100,
            latency=LatencyHistogram.of(values).to_bytes(),
            classes={3: number},
            resources=Resources(rss_bytes=number * 100, temperature_c=40.0 + number),
        )
        for number, arm, values in ((1, "main", [100.0] * 100), (2, "main", [100.0] * 90), (3, "half", [900.0] * 10))
    ]
    store.write("acme", windows)
    seen = _only(_collect(store, _row("1.0.0"))).candidate
    assert (seen.count, seen.classes, seen.rss_bytes, seen.temperature_c) == (300, {3: 6}, 200.0, 42.0)
    assert seen.p95_us == pytest.approx(100, rel=0.01)  # of the merged histogram: 10 of 200 are slow


def test_outcomes_count_once_they_are_as_old_as_truths_take(store: EmbeddedStore) -> None:
    _write(store, ASSIGNED - 10 * S, "1.0.0", 100)
    _write(store, ASSIGNED + 10 * S, "2.0.0", 50)
    _write(store, NOW - 5 * S, "2.0.0", 30)
    device = _only(_collect(store, _row("1.0.0"), gates=[OutcomeAccuracyGate(maturity_s=20.0)]))
    assert (device.candidate.count, device.candidate.correct, device.candidate.wrong) == (80, 45, 5)
    assert device.incumbent == _counts(100)


def test_a_control_is_measured_before_and_since_the_time_of_the_exposed(store: EmbeddedStore) -> None:
    early = ASSIGNED - 50 * S
    for end_ns, count in ((early - S, 10), (early + S, 20), (ASSIGNED + 5 * S, 40)):
        _write(store, end_ns, "1.0.0", count, device="held")
    held = _row("1.0.0", device="held", assigned_ns=early, is_control=True)
    evidence = _collect(store, _row("1.0.0"), held)
    control = evidence.devices[1]
    assert control.is_control
    assert control.candidate == _counts(40)
    assert control.incumbent == _counts(30, windows=2)
    assert _only(_collect(store, held)).candidate == _counts(60, windows=2)  # nobody is exposed yet


def test_starts_of_the_control_are_spread_as_assignments_are() -> None:
    assert matched_starts([], 5) == matched_starts([1], 0) == []
    assert sorted(matched_starts([10, 20], 4)) == [10, 10, 20, 20]
    many = matched_starts(list(range(1000)), 400)
    assert len(set(many)) == MAX_CONTROL_STARTS
    assert sum(many) / 400 == pytest.approx(500, abs=5)


class _CountingStore(EmbeddedStore):
    """A store that counts what it is asked."""

    asked = 0

    def totals_by_device(self, where: Slice) -> list[DeviceTotals]:
        self.asked += 1
        return super().totals_by_device(where)


def test_a_thousand_devices_are_asked_for_together(tmp_path: Path) -> None:
    store = _CountingStore(tmp_path / "telemetry.db")
    exposed = [_row("1.0.0", device=f"d{n}", assigned_ns=ASSIGNED + n) for n in range(900)]
    control = [_row("1.0.0", device=f"c{n}", is_control=True) for n in range(100)]
    assert len(_collect(store, *exposed, *control).devices) == 1000
    store.close()
    assert store.asked <= 2 + 2 * MAX_CONTROL_STARTS


def test_a_device_is_silent_once_it_is_offline_and_unheard_for_the_grace(store: EmbeddedStore) -> None:
    long_ago = NOW - 10_000 * S
    cases = {
        "online": (True, NOW - 5_000 * S, (10_000.0, None)),
        "silent": (False, NOW - 5_000 * S, (10_000.0, 5_000.0)),
        "just-gone": (False, NOW - 60 * S, (9_940.0, None)),
        "silent-before": (False, long_ago - 5_000 * S, (0.0, None)),
        "died-at-once": (False, long_ago - 10 * S, (10_000.0, 0.0)),
        "never-heard": (False, 0, (0.0, None)),
    }
    rows = [
        _row("1.0.0", device=name, assigned_ns=long_ago, online=online, last_seen_ns=seen)
        for name, (online, seen, _) in cases.items()
    ]
    found = {device.device: (device.watched_s, device.silent_after_s) for device in _collect(store, *rows).devices}
    assert found == {name: expected for name, (_, _, expected) in cases.items()}


@pytest.mark.parametrize(
    ("phase", "error", "own"),
    [
        (Phase.REJECTED, "no space: the bundle needs 5 bytes and 1 in reserve, 2 are free", True),
        (Phase.REJECTED, "in quarantine: no memory: the bundle needs 5 bytes, 1 are free", True),
        (Phase.FAILED, f"download of {'a' * 64} from http://fleet gave up after 8 attempts: timed out", True),
        (Phase.FAILED, "variant int8 fails on its golden vectors: no space", False),
        (Phase.REJECTED, "bundle refused: the signature is not of a known key", False),
        (Phase.REVERTED, "no space: whatever it says", False),
        (Phase.LOST, "", False),
        (Phase.HEALTHY, "", False),
    ],
)
def test_a_devices_own_trouble_is_known_by_what_it_reports(
    store: EmbeddedStore, phase: Phase, error: str, own: bool
) -> None:
    assert _only(_collect(store, _row("1.0.0", error=error), phase=phase)).own_trouble is own


def test_a_device_that_never_saw_its_assignment_does_not_speak_against_the_bundle(store: EmbeddedStore) -> None:
    unseen = replace(_row("1.0.0"), assigned_generation=3)
    assert _only(_collect(store, unseen, phase=Phase.LOST)).own_trouble


def test_a_device_that_was_given_its_incumbent_back_is_judged_no_more(store: EmbeddedStore) -> None:
    exposed = [ExposedDevice(device="d", phase=Phase.HEALTHY, restored=True)]
    evidence = collect_evidence(
        store, [_row("1.0.0")], exposed, fleet="acme", model="digits", version="2.0.0", manifest=MANIFEST,
        bake_started_ns=0, now_ns=NOW,
    )  # fmt: skip
    assert evidence.devices == ()
