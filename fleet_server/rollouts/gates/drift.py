"""The gate on what the candidate predicts: how far its class shares moved from the incumbent's, in total variation.

The plug-in distance of two samples is positive without any change: with n calls in k classes about sqrt(k/n). So the
direction (which classes grew) is taken from one half of the devices and measured on the other, and the other way round:
a device's value is then half the sum of signed changes of its own shares, whose mean is 0 without a change and at most
the distance with one. Its confidence sequence over devices gives the lower end, against the own past and the control.
The upper end is that of the plug-in distance of the mean changes, which errs upwards (Jensen).

Below MIN_DEVICES exposed devices: beta-binomial sequences on every class's pooled shares, alpha divided among them.
"""

from __future__ import annotations

import numpy as np

from fleet_server.rollouts.comparison import MIN_DEVICES, TRIALS_OPT, Flags, Paired, Values, device_change
from fleet_server.rollouts.gates.columns import Columns, class_counts
from fleet_server.rollouts.gates.rates import MIN_COMPARABLE_SHARE
from fleet_server.rollouts.gates.verdicts import GateResult, inconclusive, judged
from fleet_server.rollouts.policy import DriftGate
from fleet_server.statistics import Interval, rate_interval

MIN_CALLS_FOR_SHARES = 20
"""Predictions a device needs on each side before its class shares count."""


def drift(gate: DriftGate, exposed: Columns, control: Columns) -> GateResult:
    """The class shares move by at most `max_distance`."""
    (now, before), (now_held, before_held) = class_counts(exposed, control)
    here, there = _known(now, before), _known(now_held, before_held)
    compared, answered = int(here.sum()), int((now.sum(axis=1) > 0).sum())
    numbers = {
        "exposed": exposed.size,
        "compared_devices": compared,
        "predictions": int(now[here].sum()),
        "classes": now.shape[1],
        "margin": gate.max_distance,
        "alpha": gate.alpha,
    }
    if not compared:
        return inconclusive(gate, numbers, f"no exposed device has {MIN_CALLS_FOR_SHARES} predictions by both versions")
    if control.size >= MIN_DEVICES > int(there.sum()):
        # a control that has not told enough yet is waited for: what it will say is not known
        lacking = f"only {int(there.sum())} of {control.size} control devices have {MIN_CALLS_FOR_SHARES} predictions"
        return inconclusive(gate, numbers, f"{lacking} by both versions, {MIN_DEVICES} are needed")
    by_device = None
    if exposed.size >= MIN_DEVICES:
        by_device = _by_device(
            _moves(now, before, here), exposed.half[here], _moves(now_held, before_held, there), control.half[there],
            gate.alpha / 2,
        )  # fmt: skip
    found = by_device or _pooled(
        now[here].sum(axis=0), before[here].sum(axis=0), gate.alpha / 2 if exposed.size >= MIN_DEVICES else gate.alpha
    )
    value, interval, control_devices = found
    numbers |= {
        "distance": value,
        "harm_lower": interval.lower,
        "harm_upper": interval.upper,
        "control_devices": control_devices,
    }
    apart = f", apart from how {control_devices} control devices moved" if control_devices else ""
    seen = (
        f"class shares moved by {value:.3f} on {compared} devices against their own past{apart}: {interval.lower:.3f} "
        f"to {interval.upper:.3f}, {gate.max_distance:g} is allowed"
    )
    few = compared < MIN_COMPARABLE_SHARE * answered
    reservation = f"but {answered - compared} devices that answered have nothing to be compared with" if few else ""
    return judged(gate, interval, margin=gate.max_distance, numbers=numbers, seen=seen, reservation=reservation)


def _known(now: Values, before: Values) -> Flags:
    enough: Flags = (now.sum(axis=1) >= MIN_CALLS_FOR_SHARES) & (before.sum(axis=1) >= MIN_CALLS_FOR_SHARES)
    return enough


def _moves(now: Values, before: Values, which: Flags) -> Values:
    """How each device's class shares moved `[devices, classes]`."""
    after, past = now[which], before[which]
    moved: Values = after / after.sum(axis=1, keepdims=True) - past / past.sum(axis=1, keepdims=True)
    return moved


def _by_device(
    here: Values, half: Flags, there: Values, held_half: Flags, alpha: float
) -> tuple[float, Interval, int] | None:
    with_control = here.shape[0] >= MIN_DEVICES and there.shape[0] >= MIN_DEVICES
    if not with_control:
        there, held_half = there[:0], held_half[:0]
    signed, signed_held = np.zeros(here.shape[0]), np.zeros(there.shape[0])
    for side in (False, True):
        signs = np.sign(_mean_move(here[half == side], there[held_half == side]))
        signed[half != side] = here[half != side] @ signs / 2
        signed_held[held_half != side] = there[held_half != side] @ signs / 2
    change = device_change(
        Paired(now=signed, before=np.zeros_like(signed)),
        Paired(now=signed_held, before=np.zeros_like(signed_held)),
        alpha,
    )
    if change is None:
        return None
    width = change.interval.upper - change.value
    plug_in = max(float(np.abs(_mean_move(here, there)).sum()) / 2, change.value)
    interval = Interval(lower=max(0.0, change.interval.lower), upper=plug_in + width)
    return max(0.0, change.value), interval, change.control_devices


def _mean_move(here: Values, there: Values) -> Values:
    zero = np.zeros(here.shape[1])
    moved: Values = (here.mean(axis=0) if here.size else zero) - (there.mean(axis=0) if there.size else zero)
    return moved


def _pooled(now: Values, before: Values, alpha: float) -> tuple[float, Interval, int]:
    totals = int(now.sum()), int(before.sum())
    lower = upper = 0.0
    share_alpha = alpha / (2 * now.size)
    for count, past in zip(now.tolist(), before.tolist(), strict=True):
        after = rate_interval(int(count), totals[0], share_alpha, trials_opt=TRIALS_OPT)
        past_share = rate_interval(int(past), totals[1], share_alpha, trials_opt=TRIALS_OPT)
        lowest, highest = after.lower - past_share.upper, after.upper - past_share.lower
        lower += max(0.0, lowest, -highest) / 2
        upper += max(highest, -lowest) / 2
    value = float(np.abs(now / totals[0] - before / totals[1]).sum()) / 2
    return value, Interval(lower=lower, upper=min(1.0, upper)), 0
