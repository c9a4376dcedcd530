"""The gates a policy may ask for, each with its margin and its error rate. Values only.

Invariants: every margin is finite and bounded, and has a default; a gate's name in a policy is its tag here.
"""

from __future__ import annotations

from typing import Annotated, get_args

from msgspec import Meta, Struct

Share = Annotated[float, Meta(ge=0, lt=1)]
Margin = Annotated[float, Meta(gt=0, lt=1)]
Alpha = Annotated[float, Meta(gt=0, le=0.5)]
Growth = Annotated[float, Meta(gt=0, le=10)]


class _Gate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="gate"):
    """A rule over evidence. `alpha` is the chance of a wrong verdict over all looks together."""

    alpha: Alpha = 0.05


class UpdateFailuresGate(_Gate, frozen=True, kw_only=True, tag="update_failures"):
    """Guards the share of exposed devices that ended rejected, failed or reverted: at most `max_share`."""

    max_share: Share = 0.05


class LossesGate(_Gate, frozen=True, kw_only=True, tag="losses"):
    """Guards devices that fall silent after their assignment, against those of the control in the same time."""

    max_increase: Margin = 0.05


class ErrorRateGate(_Gate, frozen=True, kw_only=True, tag="error_rate"):
    """Guards the share of inferences that fail: at most `max_increase` above the incumbent's."""

    max_increase: Margin = 0.02


class LatencyGate(_Gate, frozen=True, kw_only=True, tag="latency"):
    """Guards each device's p95 latency: at most the share `max_increase` longer than the incumbent's."""

    max_increase: Growth = 0.25


class MemoryGate(_Gate, frozen=True, kw_only=True, tag="memory"):
    """Guards the agent's resident memory: at most the share `max_increase` above that with the incumbent."""

    max_increase: Growth = 0.25


class TemperatureGate(_Gate, frozen=True, kw_only=True, tag="temperature"):
    """Guards the device's temperature: at most `max_increase_c` degrees above that with the incumbent."""

    max_increase_c: Annotated[float, Meta(gt=0, le=100)] = 5.0


class OutcomeAccuracyGate(_Gate, frozen=True, kw_only=True, tag="outcome_accuracy"):
    """Guards the share of outcomes that are correct: at most `max_drop` below the incumbent's.

    `min_outcomes` is what a pass needs at least; a fail needs only its interval. `maturity_s`: windows count once they
    are so old, where truths come late and the early ones are not like the rest.
    """

    max_drop: Margin = 0.05
    min_outcomes: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 50
    maturity_s: Annotated[float, Meta(ge=0, le=30 * 86_400)] = 0.0


class ShadowDisagreementGate(_Gate, frozen=True, kw_only=True, tag="shadow_disagreement"):
    """Guards the share of shadowed calls that the candidate answers otherwise than what serves: at most `max_share`."""

    max_share: Margin = 0.1


class DriftGate(_Gate, frozen=True, kw_only=True, tag="drift"):
    """Guards what the candidate predicts: its class shares move at most `max_distance` from the incumbent's.

    The distance is the total variation, half the sum of the absolute differences of the shares: 0 to 1.
    """

    max_distance: Margin = 0.15


Gate = (
    UpdateFailuresGate
    | LossesGate
    | ErrorRateGate
    | LatencyGate
    | MemoryGate
    | TemperatureGate
    | OutcomeAccuracyGate
    | ShadowDisagreementGate
    | DriftGate
)
GATES: tuple[type[_Gate], ...] = get_args(Gate)


def gate_name(gate: Gate | type[_Gate]) -> str:
    """The gate's name in a policy and in its results."""
    return str(gate.__struct_config__.tag)
