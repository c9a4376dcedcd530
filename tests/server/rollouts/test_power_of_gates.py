"""What a plan says that gates see, held against the gates themselves on simulated devices."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_protocol.messages import Phase
from fleet_server.rollouts.gate_policies import (
    GATES,
    DriftGate,
    ErrorRateGate,
    Gate,
    LatencyGate,
    LossesGate,
    MemoryGate,
    OutcomeAccuracyGate,
    ShadowDisagreementGate,
    TemperatureGate,
    UpdateFailuresGate,
    gate_name,
)
from fleet_server.rollouts.gates import Verdict, evaluate_gates
from fleet_server.rollouts.measures import DeviceEvidence, Evidence, Measures
from fleet_server.rollouts.power_of_gates import (
    LATENCY_SPREAD,
    MEMORY_SPREAD,
    POWER,
    RATE_SPREAD_SHARE,
    TEMPERATURE_SPREAD_C,
    Traffic,
    broken_outlook,
    gate_outlook,
)

_TRAFFIC = Traffic(
    devices=40,
    inferences_per_s=0.2,
    error_rate=0.01,
    error_spread=0.004,
    outcomes_per_s=0.02,
    accuracy=0.95,
    accuracy_spread=0.02,
)
_BAKE_S = 3600.0
_RUNS = 80


def _clipped(rate: float) -> float:
    return float(np.clip(rate, 0.0, 1.0))


def _device(gate: Gate, name: str, harm: float, *, is_control: bool, rng: np.random.Generator) -> DeviceEvidence:
    """A device whose change is `harm` and the spread that the outlook assumes."""
    calls, past_calls = int(_TRAFFIC.inferences_per_s * _BAKE_S), int(_TRAFFIC.inferences_per_s * _TRAFFIC.past_s)
    told, past_told = int(_TRAFFIC.outcomes_per_s * _BAKE_S), int(_TRAFFIC.outcomes_per_s * _TRAFFIC.past_s)
    now, before = Measures(count=calls), Measures(count=past_calls)
    match gate:
        case ErrorRateGate():
            own = _clipped(rng.normal(_TRAFFIC.error_rate, _TRAFFIC.error_spread))
            new = _clipped(own + harm + rng.normal(0, RATE_SPREAD_SHARE * _TRAFFIC.error_spread))
            bad, past_bad = int(rng.binomial(calls, new)), int(rng.binomial(past_calls, own))
            now = Measures(count=calls - bad, errors=bad)
            before = Measures(count=past_calls - past_bad, errors=past_bad)
        case OutcomeAccuracyGate():
            own = _clipped(rng.normal(1 - _TRAFFIC.accuracy, _TRAFFIC.accuracy_spread))
            new = _clipped(own + harm + rng.normal(0, RATE_SPREAD_SHARE * _TRAFFIC.accuracy_spread))
            bad, past_bad = int(rng.binomial(told, new)), int(rng.binomial(past_told, own))
            now = Measures(count=calls, correct=told - bad, wrong=bad)
            before = Measures(count=past_calls, correct=past_told - past_bad, wrong=past_bad)
        case LatencyGate():
            own = 1000 * float(np.exp(rng.normal(0, 0.5)))
            new = own * (1 + harm) * float(np.exp(rng.normal(0, LATENCY_SPREAD)))
            now, before = Measures(count=calls, p95_us=new), Measures(count=past_calls, p95_us=own)
        case MemoryGate():
            own = 1e8 * float(np.exp(rng.normal(0, 0.3)))
            new = own * (1 + harm) * float(np.exp(rng.normal(0, MEMORY_SPREAD)))
            now, before = Measures(count=calls, rss_bytes=new), Measures(count=past_calls, rss_bytes=own)
        case TemperatureGate():
            own = float(rng.normal(50, 8))
            new = own + harm + float(rng.normal(0, TEMPERATURE_SPREAD_C))
            now, before = Measures(count=calls, temperature_c=new), Measures(count=past_calls, temperature_c=own)
        case ShadowDisagreementGate():
            now = Measures(count=calls, shadow_compared=calls, shadow_disagreed=int(rng.binomial(calls, harm)))
        case _:
            raise AssertionError(gate)
    return DeviceEvidence(
        device=name, phase=Phase.HEALTHY, candidate=now, incumbent=before, is_control=is_control, watched_s=_BAKE_S
    )


def _verdicts(gate: Gate, harm: float, *, devices: int, control: int) -> list[Verdict]:
    rng = np.random.default_rng(20)
    found = []
    for _ in range(_RUNS):
        exposed = [_device(gate, f"e{n}", harm, is_control=False, rng=rng) for n in range(devices)]
        held = [_device(gate, f"c{n}", 0.0, is_control=True, rng=rng) for n in range(control)]
        [result] = evaluate_gates([gate], Evidence(devices=(*exposed, *held)))
        found.append(result.verdict)
    return found


@pytest.mark.parametrize(
    ("gate", "devices", "control"),
    [
        (ErrorRateGate(), 5, 0),
        (ErrorRateGate(), 40, 20),
        (OutcomeAccuracyGate(), 5, 0),
        (OutcomeAccuracyGate(), 40, 0),
        (OutcomeAccuracyGate(), 40, 40),
        (LatencyGate(), 8, 0),
        (LatencyGate(), 40, 0),
        (LatencyGate(), 40, 40),
        (MemoryGate(), 20, 15),
        (TemperatureGate(), 30, 0),
        (ShadowDisagreementGate(), 3, 0),
        (ShadowDisagreementGate(), 20, 0),
    ],
    ids=lambda value: gate_name(value) if isinstance(value, GATES) else str(value),
)
def test_a_gate_finds_the_smallest_harm_as_often_as_said(gate: Gate, devices: int, control: int) -> None:
    outlook = gate_outlook(gate, stage=0, devices=devices, control=control, bake_s=_BAKE_S, traffic=_TRAFFIC)
    assert outlook.smallest_harm is not None
    assert outlook.smallest_harm > outlook.margin
    found = _verdicts(gate, outlook.smallest_harm, devices=devices, control=control)
    share = found.count(Verdict.FAIL) / _RUNS
    assert abs(share - POWER) <= 0.18


def test_ten_devices_let_a_model_that_breaks_one_in_five_pass_one_time_in_nine() -> None:
    """0.8^10: the percentage rules of other updaters let it pass with one or two broken devices, 38 % of the time."""
    broken = broken_outlook(UpdateFailuresGate(), sizes=[10], controls=[0], bakes_s=[_BAKE_S])
    assert broken.how == "reverts"
    assert broken.passes == pytest.approx([0.8**10])


def test_stages_on_the_way_take_their_share_of_bad_models_and_silence_is_counted_too() -> None:
    for gate in (UpdateFailuresGate(), LossesGate()):
        broken = broken_outlook(gate, sizes=[1, 3, 9], controls=[1, 1, 1], bakes_s=[_BAKE_S] * 3)
        assert broken.passes == sorted(broken.passes, reverse=True)
        assert broken.passes[0] == pytest.approx(0.8)
        assert broken.passes[-1] < 0.2
    large = broken_outlook(UpdateFailuresGate(), sizes=[50, 500, 100_000], controls=[0] * 3, bakes_s=[_BAKE_S] * 3)
    assert large.passes[-1] < 0.02


def test_broken_devices_of_earlier_stages_stay_broken() -> None:
    """One broken device of five and four of twenty are allowed: the paths agree with a simulation of them."""
    gate = UpdateFailuresGate(max_share=0.2)
    told = broken_outlook(gate, sizes=[5, 20], controls=[0, 0], bakes_s=[_BAKE_S] * 2).passes[-1]
    broken = np.random.default_rng(3).random((40_000, 20)) < 0.2
    first, both = broken[:, :5].sum(axis=1), broken.sum(axis=1)
    assert told == pytest.approx(float(((first <= 1) & (both <= 4)).mean()), abs=0.01)


@pytest.mark.parametrize("gate", [kind() for kind in GATES], ids=gate_name)
@pytest.mark.parametrize("devices", [1, 9, 50, 1_000_000])
def test_every_gate_has_an_outlook_at_every_size(gate: Gate, devices: int) -> None:
    outlook = gate_outlook(gate, stage=2, devices=devices, control=devices // 10, bake_s=_BAKE_S, traffic=_TRAFFIC)
    assert 0 <= outlook.bad_fails <= 1
    assert 0 <= outlook.bad_passes <= 1
    assert outlook.bad_fails + outlook.bad_passes <= 1 + 1e-9
    assert outlook.smallest_harm is None or outlook.smallest_harm > 0
    if devices == 1_000_000:
        assert outlook.smallest_harm is not None
        # what counts devices is asked with 500 of them, and still finds what it says at a million
        reach = 4.0 if isinstance(gate, LossesGate) else 1.5
        assert outlook.smallest_harm < outlook.margin * reach
        assert isinstance(gate, LossesGate | DriftGate) or outlook.bad_fails > POWER


def test_a_gate_without_traffic_sees_nothing_and_passes_nothing() -> None:
    for gate in (ErrorRateGate(), OutcomeAccuracyGate()):
        silent = Traffic(devices=0, inferences_per_s=0.0)
        outlook = gate_outlook(gate, stage=0, devices=100, control=10, bake_s=_BAKE_S, traffic=silent)
        assert outlook.smallest_harm is None
        assert (outlook.bad_fails, outlook.bad_passes) == (0, 0)
        assert "assumed" in outlook.note


def test_outcomes_that_mature_after_the_bake_let_nothing_pass() -> None:
    gate = OutcomeAccuracyGate(maturity_s=2 * _BAKE_S)
    outlook = gate_outlook(gate, stage=0, devices=100, control=10, bake_s=_BAKE_S, traffic=_TRAFFIC)
    assert (outlook.smallest_harm, outlook.bad_passes) == (None, 0)
