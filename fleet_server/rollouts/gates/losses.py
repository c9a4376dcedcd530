"""The gate on devices that fall silent after their assignment, against those of the control in the same time.

Each device at risk is one trial: silent now, or not. The shares of both groups have beta-binomial sequences, each at
half of alpha. Of the control those count as lost that fell silent within the time that the exposed devices have been
watched so far: its share at each exposed device's own time, averaged.

A pass is a statement about all: either the excess is within the margin for sure, or not one exposed device at risk is
silent. With a handful of devices only the second can be, and a model that silences one device in five passes it on
ten devices with probability 0.8^10 = 11 %.
"""

from __future__ import annotations

import numpy as np

from fleet_server.rollouts.comparison import MIN_DEVICES, TRIALS_OPT, Values
from fleet_server.rollouts.gates.columns import Columns
from fleet_server.rollouts.gates.verdicts import GateResult, Verdict, inconclusive, judged, result_of
from fleet_server.rollouts.policy import LossesGate
from fleet_server.statistics import Interval, rate_interval


def losses(gate: LossesGate, exposed: Columns, control: Columns) -> GateResult:
    """At most the share `max_increase` more of the devices falls silent than in the control, or at all without one."""
    watched_s, silent_after_s = _at_risk(exposed)
    held_s, held_silent_after_s = _at_risk(control)
    at_risk, silent = watched_s.size, int(np.isfinite(silent_after_s).sum())
    numbers = {
        "exposed": exposed.size,
        "at_risk": at_risk,
        "silent": silent,
        "margin": gate.max_increase,
        "alpha": gate.alpha,
    }
    if not at_risk:
        return inconclusive(gate, numbers, "no exposed device was heard when the candidate was assigned to it")
    if held_s.size >= MIN_DEVICES:
        expected = _silent_share_within(watched_s, held_silent_after_s)
        held = rate_interval(round(expected * held_s.size), held_s.size, gate.alpha / 2, trials_opt=TRIALS_OPT)
        numbers |= {"control_devices": held_s.size, "control_share": expected}
        beside = f"{expected:.1%} of {held_s.size} control devices in the same time"
        own_alpha = gate.alpha / 2
    else:
        held, own_alpha = Interval(lower=0.0, upper=0.0), gate.alpha
        numbers |= {"control_devices": 0}
        beside = "no control"
    share = rate_interval(silent, at_risk, own_alpha, trials_opt=TRIALS_OPT)
    excess = Interval(lower=share.lower - held.upper, upper=share.upper - held.lower)
    numbers |= {"harm_lower": excess.lower, "harm_upper": excess.upper}
    if not silent:
        everyone = f"not one of {at_risk} exposed devices is silent ({beside})"
        return result_of(gate, Verdict.PASS, numbers, everyone)
    seen = (
        f"{silent} of {at_risk} exposed devices are silent, against {beside}: more by {excess.lower:.1%} to "
        f"{excess.upper:.1%}, {gate.max_increase:.1%} are allowed"
    )
    return judged(gate, excess, margin=gate.max_increase, numbers=numbers, seen=seen)


def _at_risk(group: Columns) -> tuple[Values, Values]:
    known = group.watched_s > 0
    return group.watched_s[known], group.silent_after_s[known]


def _silent_share_within(watched_s: Values, silent_after_s: Values) -> float:
    """The control's silent share, had it been watched as long as the exposed devices were."""
    fell_silent_s = np.sort(silent_after_s[np.isfinite(silent_after_s)])
    return float(np.searchsorted(fell_silent_s, watched_s, side="right").mean()) / silent_after_s.size
