"""How much worse the candidate is than what the same devices had before, as an interval that holds at every look.

"Bad" is a failed inference or a wrong outcome; harm is the candidate's bad rate minus the baseline's. Pure
numbers; `gates` turns them into verdicts, docs/decisions/0004-gates-on-small-fleets.md says why it is so.

- Baseline of a device: its own past with the incumbent, or a number known beforehand (`fixed_baseline`) when
  there is no incumbent. A device with neither is left out, and counted as left out.
- Pooled interval: beta-binomial sequences on the candidate's and the incumbent's pooled rates; errors add up,
  so each has half of alpha. Pools weigh devices by their trials; when the candidate's weights differ from the
  incumbent's, the difference that this makes by itself (`mix_shift`) widens the interval on both sides.
- Device-level interval: with MIN_DEVICES or more exposed, the mean over devices of their own differences has
  the other half of alpha. It exists once that many devices have enough trials on both sides and differ at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleet_server.statistics import Interval, mean_interval, rate_interval

MIN_DEVICES = 10
"""Devices from which on the unit of inference is the device as well."""
MIN_TRIALS_PER_DEVICE = 5
"""Trials a device needs on each side before its own difference counts."""
TRIALS_OPT = 100.0
"""Trials at which the pooled intervals are tightest; fixed beforehand for every rollout."""
DEVICES_OPT = 50.0
"""Devices at which the device-level interval is tightest; fixed beforehand for every rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTrials:
    """One device's bad events and trials with the candidate, and its baseline: counts, or a rate, or neither."""

    bad: int
    trials: int
    baseline_bad: int = 0
    baseline_trials: int = 0
    fixed_baseline: float | None = None

    @property
    def is_paired(self) -> bool:
        """Whether this device can be compared with its own past."""
        return self.trials > 0 and self.baseline_trials > 0

    @property
    def is_fixed(self) -> bool:
        """Whether this device can be compared with a rate known beforehand."""
        return self.trials > 0 and self.baseline_trials == 0 and self.fixed_baseline is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """Harm in rate points: the pooled estimate with its interval, and the device-level interval where there is one."""

    candidate_rate: float
    baseline_rate: float
    pooled: Interval
    by_device: Interval | None
    trials: int
    baseline_trials: int
    left_out_trials: int
    compared_devices: int
    mix_shift: float

    @property
    def lower(self) -> float:
        """Harm is at least this, by the method that says most."""
        return max(self.pooled.lower, self.by_device.lower) if self.by_device else self.pooled.lower

    @property
    def upper(self) -> float:
        """Harm is at most this, by the method that says least."""
        return max(self.pooled.upper, self.by_device.upper) if self.by_device else self.pooled.upper

    @property
    def comparable_share(self) -> float:
        """The share of the candidate's trials that took part in the comparison."""
        return self.trials / (self.trials + self.left_out_trials)


def estimate_harm(devices: Sequence[DeviceTrials], alpha: float) -> Harm | None:
    """The harm on the exposed `devices` (all of them, also those without trials) at error rate `alpha`.

    None when no device can be compared.
    """
    paired = [device for device in devices if device.is_paired]
    fixed = [device for device in devices if device.is_fixed]
    trials = sum(device.trials for device in (*paired, *fixed))
    if trials == 0:
        return None
    two_methods = len(devices) >= MIN_DEVICES  # by the number exposed, which does not depend on what came out
    pooled_alpha = alpha / 2 if two_methods else alpha
    bad = sum(device.bad for device in (*paired, *fixed))
    candidate = rate_interval(bad, trials, pooled_alpha / 2 if paired else pooled_alpha, trials_opt=TRIALS_OPT)
    fixed_part = sum(device.trials * (device.fixed_baseline or 0.0) for device in fixed) / trials

    paired_share = sum(device.trials for device in paired) / trials
    baseline_bad = sum(device.baseline_bad for device in paired)
    baseline_trials = sum(device.baseline_trials for device in paired)
    incumbent = rate_interval(baseline_bad, baseline_trials, pooled_alpha / 2, trials_opt=TRIALS_OPT)
    incumbent_rate = baseline_bad / baseline_trials if baseline_trials else 0.0
    shift = paired_share * abs(_reweighted(paired) - incumbent_rate)
    return Harm(
        candidate_rate=bad / trials,
        baseline_rate=paired_share * incumbent_rate + fixed_part,
        pooled=Interval(
            lower=candidate.lower - paired_share * incumbent.upper - fixed_part - shift,
            upper=candidate.upper - paired_share * incumbent.lower - fixed_part + shift,
        ),
        by_device=_by_device(paired, alpha / 2) if two_methods else None,
        trials=trials,
        baseline_trials=baseline_trials,
        left_out_trials=sum(device.trials for device in devices) - trials,
        compared_devices=len(paired) + len(fixed),
        mix_shift=shift,
    )


def _reweighted(paired: Sequence[DeviceTrials]) -> float:
    """The incumbent's rate, had it been used on these devices as much as the candidate was."""
    trials = sum(device.trials for device in paired)
    weighted = sum(device.trials * device.baseline_bad / device.baseline_trials for device in paired)
    return weighted / trials if trials else 0.0


def _by_device(paired: Sequence[DeviceTrials], alpha: float) -> Interval | None:
    differences = [
        device.bad / device.trials - device.baseline_bad / device.baseline_trials
        for device in paired
        if min(device.trials, device.baseline_trials) >= MIN_TRIALS_PER_DEVICE
    ]
    if len(differences) < MIN_DEVICES:
        return None
    return mean_interval(differences, alpha, devices_opt=DEVICES_OPT)
