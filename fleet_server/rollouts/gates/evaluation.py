"""Asks each gate of a policy for its verdict, over all devices and segment by segment.

Invariants:
1. no data, a store that is away, an exception: inconclusive, never pass, and no gate hides another's fail;
2. with `segments` the chance of any false fail of a gate stays its alpha: all devices have half of it, and the segments
   share the other half equally (Bonferroni, which holds however they depend on each other);
3. a segment is judged alone once it has `min_devices` exposed devices; the MAX_SEGMENTS largest at most.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from fleet_server.rollouts.gates.columns import Columns, split
from fleet_server.rollouts.gates.drift import drift
from fleet_server.rollouts.gates.levels import latency, memory, temperature
from fleet_server.rollouts.gates.losses import losses
from fleet_server.rollouts.gates.rates import error_rate, outcome_accuracy, shadow_disagreement
from fleet_server.rollouts.gates.update_failures import update_failures
from fleet_server.rollouts.gates.verdicts import GateResult, inconclusive
from fleet_server.rollouts.measures import Evidence
from fleet_server.rollouts.policy import (
    DriftGate,
    ErrorRateGate,
    Gate,
    LatencyGate,
    LossesGate,
    MemoryGate,
    OutcomeAccuracyGate,
    SegmentPolicy,
    ShadowDisagreementGate,
    TemperatureGate,
    UpdateFailuresGate,
    gate_name,
)

MAX_SEGMENTS = 64
"""Segments judged alone, so that one look stays quick and alpha is not divided into nothing."""

_LOGGER = logging.getLogger(__name__)
_JUDGES: dict[type[Gate], Callable[[Any, Columns, Columns], GateResult]] = {
    UpdateFailuresGate: update_failures,
    LossesGate: losses,
    ErrorRateGate: error_rate,
    LatencyGate: latency,
    MemoryGate: memory,
    TemperatureGate: temperature,
    OutcomeAccuracyGate: outcome_accuracy,
    ShadowDisagreementGate: shadow_disagreement,
    DriftGate: drift,
}
_NEEDS_NO_TELEMETRY = (UpdateFailuresGate, LossesGate)


def evaluate_gates(
    gates: Sequence[Gate], evidence: Evidence, *, segments: SegmentPolicy | None = None
) -> tuple[GateResult, ...]:
    """The result of each gate, in the policy's order, over all devices; then of each of the `segments`, by name."""
    try:
        exposed, control = split(evidence)
    except Exception as unreadable:
        _LOGGER.exception("the evidence cannot be read")
        return tuple(_broken(gate, unreadable) for gate in gates)
    away = evidence.telemetry_error
    if segments is None:
        return tuple(_evaluate(gate, exposed, control, away) for gate in gates)
    results = [_evaluate(_with_alpha(gate, gate.alpha / 2), exposed, control, away) for gate in gates]
    known = {device.segment for device in evidence.devices} - {""}
    for name, here, there in _judged_segments(exposed, control, segments):
        for gate in gates:
            found = _evaluate(_with_alpha(gate, gate.alpha / (2 * len(known))), here, there, away)
            results.append(msgspec.structs.replace(found, segment=name))
    return tuple(results)


def _judged_segments(
    exposed: Columns, control: Columns, segments: SegmentPolicy
) -> Iterator[tuple[str, Columns, Columns]]:
    of_exposed = [device.segment for device in exposed.devices]
    sizes = Counter(of_exposed)
    largest = [name for name, size in sizes.most_common() if name and size >= segments.min_devices][:MAX_SEGMENTS]
    of_exposed_array = np.array(of_exposed, dtype=object)
    of_control = np.array([device.segment for device in control.devices], dtype=object)
    for name in sorted(largest):
        yield name, exposed.select(of_exposed_array == name), control.select(of_control == name)


def _evaluate(gate: Gate, exposed: Columns, control: Columns, telemetry_error: str) -> GateResult:
    try:
        if telemetry_error and not isinstance(gate, _NEEDS_NO_TELEMETRY):
            return inconclusive(gate, {}, f"no telemetry to judge by: {telemetry_error}")
        with np.errstate(all="ignore"):  # what is not finite is told by the verdict
            return _JUDGES[type(gate)](gate, exposed, control)
    except Exception as error:  # whatever goes wrong in one gate must not become a pass, nor hide another's fail
        _LOGGER.exception("gate %s could not be evaluated", gate_name(gate))
        return _broken(gate, error)


def _broken(gate: Gate, error: Exception) -> GateResult:
    explanation = f"the gate could not be evaluated ({type(error).__name__}); the server's log has the reason"
    return inconclusive(gate, {}, explanation)


def _with_alpha(gate: Gate, alpha: float) -> Gate:
    return msgspec.structs.replace(gate, alpha=alpha)
