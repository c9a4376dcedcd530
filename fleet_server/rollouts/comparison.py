"""How much worse the candidate is than what it replaces, as intervals that hold at every look. Pure numbers.

`gates` turns them into verdicts; docs/decisions/0013-gates-on-device-means.md says why it is so.

- A device is compared with its own past with the incumbent, or with a number known beforehand (`fixed_baseline`) when
  there is no incumbent. A device with neither is left out, and counted as left out.
- Device level (`device_change`), from MIN_DEVICES comparable devices on: the mean over devices of what became of them.
  With as many in the control, less the control's own change, each device's past taken out with the coefficient that
  leaves the least variance (CUPED; without a control that would be no comparison, and the coefficient is 1).
- Pooled (`estimate_harm`): beta-binomial sequences on the candidate's and the incumbent's pooled rates; errors add up,
  so each has half of alpha. Pools weigh devices by their trials; when the candidate's weights differ from the
  incumbent's, the difference that this makes by itself (`mix_shift`) widens the interval on both sides. With
  MIN_DEVICES comparable devices in the control, what the control's pool did is taken off, at half of the alpha.
- Alpha is shared by the number exposed, which does not depend on what came out: below MIN_DEVICES the pool has all of
  it, from there on each method has half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet_server.statistics import Interval, rate_interval
from fleet_server.statistics.confidence_sequences import estimate_interval, few_devices_estimate_interval

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

MIN_DEVICES = 10
"""Devices from which on the unit of inference is the device, and from which on a control is one."""
MIN_TRIALS_PER_DEVICE = 5
"""Trials a device needs on each side before its own difference counts."""
TRIALS_OPT = 100.0
"""Trials at which the pooled intervals are tightest; fixed beforehand for every rollout."""
DEVICES_OPT = 50.0
"""Devices at which the device-level interval is tightest; fixed beforehand for every rollout."""
FEW_DEVICES_OPT = 2.0
"""The same for fewer than MIN_DEVICES."""
_NO_VARIANCE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """One figure of each device `[devices]`, now and before.

    `chance` is the variance of the mean of `now` that counting alone gives, 0 for what is not counted: the interval is
    at least as wide as that, because the variance of a few rare events is no estimate.
    """

    now: Values
    before: Values
    chance: float = 0.0


NO_CONTROL = Paired(now=np.zeros(0), before=np.zeros(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The mean change over devices with its interval; `control_devices` is 0 where it is against the own past alone."""

    value: float
    interval: Interval
    devices: int
    control_devices: int


def device_change(exposed: Paired, control: Paired, alpha: float) -> Change | None:
    """The change of the exposed devices, less that of the control where this has MIN_DEVICES.

    None with fewer than MIN_DEVICES exposed, and without any variance.
    """
    if exposed.now.size < MIN_DEVICES:
        return None
    found = _contrast(exposed, control)
    if found is None:
        return None
    interval = estimate_interval(
        found.value, standard_error=found.standard_error, size=found.size, alpha=alpha, size_opt=DEVICES_OPT
    )
    return found.change(interval)


def few_devices_change(exposed: Paired, control: Paired, alpha: float) -> Change | None:
    """The same of a handful of exposed devices, by the t mixture; None when these cannot tell."""
    if exposed.now.size < 2:
        return None
    found = _contrast(exposed, control)
    if found is None:
        return None
    interval = few_devices_estimate_interval(
        found.value,
        standard_error=found.standard_error,
        degrees=found.degrees,
        size=found.size,
        alpha=alpha,
        size_opt=FEW_DEVICES_OPT,
    )
    return found.change(interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contrast:
    """A mean change with its standard error, Satterthwaite's degrees and the size that 1 / error^2 grows with."""

    value: float
    standard_error: float
    degrees: float
    size: float
    devices: int
    control_devices: int

    def change(self, interval: Interval | None) -> Change | None:
        if interval is None:
            return None
        return Change(value=self.value, interval=interval, devices=self.devices, control_devices=self.control_devices)


def _contrast(exposed: Paired, control: Paired) -> _Contrast | None:
    """None without any variance."""
    groups = [exposed] if control.now.size < MIN_DEVICES else [exposed, control]
    weight = _weight_of_past(groups) if len(groups) == 2 else 1.0
    adjusted = [group.now - weight * group.before for group in groups]
    spreads = [_squared_error(values) for values in adjusted]
    if not any(spreads):
        return None
    errors = [max(spread, group.chance) for spread, group in zip(spreads, groups, strict=True)]
    means = [float(values.mean()) for values in adjusted]
    sizes = [values.size for values in adjusted]
    return _Contrast(
        value=means[0] - (means[1] if len(means) == 2 else 0.0),
        standard_error=math.sqrt(sum(errors)),
        degrees=sum(errors) ** 2 / sum(error**2 / (size - 1) for error, size in zip(errors, sizes, strict=True)),
        size=1 / sum(1 / size for size in sizes),
        devices=sizes[0],
        control_devices=sizes[1] if len(sizes) == 2 else 0,
    )


def _weight_of_past(groups: Sequence[Paired]) -> float:
    """How much of a device's past foretells of it, within groups; 1 where all pasts are alike."""
    spread = common = largest = 0.0
    for group in groups:
        past = group.before - group.before.mean()
        spread += float(past @ past)
        common += float((group.now - group.now.mean()) @ past)
        largest = max(largest, float(np.abs(group.before).max()))
    return common / spread if spread > (_NO_VARIANCE * max(1.0, largest)) ** 2 else 1.0


def _squared_error(values: Values) -> float:
    """The variance of their mean, 0 when all values are equal but for rounding."""
    deviation = float(values.std(ddof=1))
    if deviation <= _NO_VARIANCE * max(1.0, float(np.abs(values).max())):
        return 0.0
    return deviation**2 / values.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """Each device's bad events and trials `[devices]` with the candidate, and its baseline.

    The baseline are counts, or a rate (`fixed_baseline`, NaN where there is none), or neither.
    """

    bad: Values
    trials: Values
    baseline_bad: Values
    baseline_trials: Values
    fixed_baseline: Values

    @property
    def is_paired(self) -> Flags:
        """Which devices can be compared with their own past."""
        found: Flags = (self.trials > 0) & (self.baseline_trials > 0)
        return found

    @property
    def is_fixed(self) -> Flags:
        """Which devices can be compared with a rate known beforehand."""
        found: Flags = (self.trials > 0) & (self.baseline_trials == 0) & np.isfinite(self.fixed_baseline)
        return found

    def select(self, which: Flags) -> Trials:
        """Those devices alone."""
        return Trials(
            bad=self.bad[which],
            trials=self.trials[which],
            baseline_bad=self.baseline_bad[which],
            baseline_trials=self.baseline_trials[which],
            fixed_baseline=self.fixed_baseline[which],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """Harm in rate points: the pooled estimate with its interval, and the device-level change where there is one."""

    candidate_rate: float
    baseline_rate: float
    pooled: Interval
    by_device: Change | None
    trials: int
    baseline_trials: int
    left_out_trials: int
    compared_devices: int
    mix_shift: float

    @property
    def lower(self) -> float:
        """Harm is at least this: the devices say so wherever they can, else the pool."""
        return self.by_device.interval.lower if self.by_device else self.pooled.lower

    @property
    def upper(self) -> float:
        """Harm is at most this. The pool must agree, unless a control tells what time alone does, which it cannot."""
        if self.by_device is None:
            return self.pooled.upper
        upper = self.by_device.interval.upper
        return upper if self.by_device.control_devices else max(self.pooled.upper, upper)

    @property
    def comparable_share(self) -> float:
        """The share of the candidate's trials that took part in the comparison."""
        return self.trials / (self.trials + self.left_out_trials)


def estimate_harm(exposed: Trials, control: Trials, alpha: float) -> Harm | None:
    """The harm on the exposed devices (all of them, also those without trials) at error rate `alpha`.

    None when no device can be compared. Raises InvalidRequestError for what are no counts.
    """
    paired, fixed = exposed.select(exposed.is_paired), exposed.select(exposed.is_fixed)
    paired_trials, fixed_trials = float(paired.trials.sum()), float(fixed.trials.sum())
    trials = paired_trials + fixed_trials
    if trials == 0:
        return None
    two_methods = exposed.trials.size >= MIN_DEVICES
    pooled_alpha = alpha / 2 if two_methods else alpha
    held = control.select(control.is_paired)
    drawn = _rates(held).now.size >= MIN_DEVICES and paired_trials > 0
    past_alpha = pooled_alpha / 2 if drawn else pooled_alpha
    bad = float(paired.bad.sum() + fixed.bad.sum())
    candidate = rate_interval(
        int(bad), int(trials), past_alpha / 2 if paired_trials else past_alpha, trials_opt=TRIALS_OPT
    )
    fixed_part = float(fixed.trials @ fixed.fixed_baseline) / trials
    paired_share = paired_trials / trials
    past = _pooled_past(paired, past_alpha / 2)
    time = _pooled_change(held, pooled_alpha / 2) if drawn else Interval(lower=0.0, upper=0.0)
    return Harm(
        candidate_rate=bad / trials,
        baseline_rate=paired_share * past.rate + fixed_part,
        pooled=Interval(
            lower=candidate.lower - paired_share * (past.interval.upper + past.mix_shift + time.upper) - fixed_part,
            upper=candidate.upper - paired_share * (past.interval.lower - past.mix_shift + time.lower) - fixed_part,
        ),
        by_device=_by_device(paired, fixed, control, alpha / 2) if two_methods else None,
        trials=int(trials),
        baseline_trials=int(past.trials),
        left_out_trials=int(float(exposed.trials.sum()) - trials),
        compared_devices=int(paired.trials.size + fixed.trials.size),
        mix_shift=paired_share * past.mix_shift,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Past:
    rate: float
    interval: Interval
    trials: float
    mix_shift: float


def _pooled_past(paired: Trials, alpha: float) -> _Past:
    bad, trials = float(paired.baseline_bad.sum()), float(paired.baseline_trials.sum())
    rate = bad / trials if trials else 0.0
    interval = rate_interval(int(bad), int(trials), alpha, trials_opt=TRIALS_OPT)
    return _Past(rate=rate, interval=interval, trials=trials, mix_shift=abs(_reweighted(paired) - rate))


def _pooled_change(held: Trials, alpha: float) -> Interval:
    """What time alone did to the pooled rate of the control."""
    now = rate_interval(int(held.bad.sum()), int(held.trials.sum()), alpha / 2, trials_opt=TRIALS_OPT)
    past = _pooled_past(held, alpha / 2)
    return Interval(
        lower=now.lower - past.interval.upper - past.mix_shift, upper=now.upper - past.interval.lower + past.mix_shift
    )


def _reweighted(paired: Trials) -> float:
    """The incumbent's rate, had it been used on these devices as much as the candidate was."""
    trials = float(paired.trials.sum())
    if not trials:
        return 0.0
    return float((paired.trials * paired.baseline_bad / paired.baseline_trials).sum()) / trials


def _by_device(paired: Trials, fixed: Trials, control: Trials, alpha: float) -> Change | None:
    after, held = _rates(paired), _rates(control.select(control.is_paired))
    if min(after.now.size, held.now.size) >= MIN_DEVICES:
        return device_change(after, held, alpha)
    if after.now.size and control.trials.size >= MIN_DEVICES:
        return None  # a control that has not told enough yet is waited for: what it will say is not known
    first = fixed.select(fixed.trials >= MIN_TRIALS_PER_DEVICE)
    everyone = Paired(
        now=np.concatenate((after.now, first.bad / first.trials)),
        before=np.concatenate((after.before, first.fixed_baseline)),
        chance=_chance(np.concatenate((paired.bad, first.bad)), np.concatenate((paired.trials, first.trials))),
    )
    return device_change(everyone, NO_CONTROL, alpha)


def _rates(devices: Trials) -> Paired:
    known = devices.select(np.minimum(devices.trials, devices.baseline_trials) >= MIN_TRIALS_PER_DEVICE)
    return Paired(
        now=known.bad / known.trials,
        before=known.baseline_bad / known.baseline_trials,
        chance=_chance(known.bad, known.trials),
    )


def _chance(bad: Values, trials: Values) -> float:
    """The variance of the mean of these rates by counting alone, of a rate two events more than was seen."""
    enough = trials >= MIN_TRIALS_PER_DEVICE
    if not bool(enough.any()):
        return 0.0
    rate = float(bad[enough].sum() + 2) / float(trials[enough].sum() + 4)
    return rate * (1 - rate) * float((1 / trials[enough]).sum()) / int(enough.sum()) ** 2
