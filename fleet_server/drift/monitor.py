"""The standing watch over one model version: what one look may claim, and what it says. Pure.

The stated rate is `false_alarms_per_week`: the chance that any look within any seven days says "drift" of anything on a
fleet that does not drift, at most. It is spent in advance, by a union bound, which holds however looks depend on each
other (they share devices, whose peculiarities last, and most of their hours):
- LOOKS_SHARE of it for the looks at distributions, equally over the looks of a week. Within a look the report keeps its
  rate over signals and segments (`report`);
- the rest for outcomes: a Shiryaev-Roberts e-process over the fleet's errors, new ones only, which alarms on average no
  more often than once in so many weeks.
A look takes a whole day, so that day and night cancel; or holds a day against the same hours of earlier weeks. It takes
the devices that were there from the day's beginning: half a day of a device that got the version at noon would pass for
drift. Nobody is judged before the second day.

Outcomes of one device are more alike than chance has it. Each look's counts are therefore shrunk by their design
effect, the variance of devices' errors over that of independent ones. The usual rate of errors is the bundle's, or that
of the first outcomes, each at its upper confidence limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from msgspec import Struct, field
from scipy.stats import beta

from fleet_server.drift.findings import DriftReport, Population, SignalFinding, SignalKind, Verdict
from fleet_server.drift.report import Comparison, compare
from fleet_server.drift.segments import DeviceFacts
from fleet_server.drift.severity import severity_of
from fleet_server.drift.signals import Matrix, Reference
from fleet_server.drift.tallies import HOUR_NS, Record, Tally, device_of
from fleet_server.statistics import shiryaev_roberts
from fleet_server.telemetry_store.port import Point

WEEK_S = 7 * 86_400
LOOKS_SHARE = 0.8
MIN_FIRST_OUTCOMES = 1_000
"""Outcomes from which the usual rate of errors is taken, where the bundle does not say it."""
BASELINE_CONFIDENCE = 0.95
OUTCOME_SIGNAL = "outcomes"
BEGINNING_S = 2 * 3_600
"""A device that was heard so soon after a span began was there for all of it, but for what its link lost."""
_NS = 10**9


class MonitorSettings(Struct, frozen=True, kw_only=True):
    """How the monitor looks: see `[drift]` of the server's settings."""

    look_every_s: int = 3_600
    span_s: int = 86_400
    false_alarms_per_week: float = 0.05
    against: str = "reference"


class OutcomeWatch(Struct, frozen=True, kw_only=True):
    """What is remembered of a version's outcomes. `log_masses` are the e-process's, -inf told as None."""

    log_masses: list[float | None] = field(default_factory=list)
    first_errors: int = 0
    first_events: int = 0
    events: float = 0.0
    looks: int = 0


def alpha_of_look(settings: MonitorSettings) -> float:
    """The level of one look at distributions.

    >>> round(alpha_of_look(MonitorSettings()), 6)
    0.000238
    """
    looks = WEEK_S / settings.look_every_s
    return settings.false_alarms_per_week * LOOKS_SHARE / max(looks, 1.0)


def there_from_the_beginning(records: Iterable[Record], *, start_ns: int) -> frozenset[str]:
    """The devices with a window, or a device hour, in the first BEGINNING_S of a span."""
    return frozenset(device_of(record) for record in records if record.start_ns < start_ns + BEGINNING_S * _NS)


def look_at(
    reference: Reference,
    records: Iterable[Record],
    facts: Mapping[str, DeviceFacts],
    *,
    start_ns: int,
    end_ns: int,
    settings: MonitorSettings,
) -> DriftReport:
    """One look at a version's windows or device hours of a span, against its reference."""
    everything = list(records)
    there = there_from_the_beginning(everything, start_ns=start_ns)
    tally = Tally(reference, step_ns=HOUR_NS).add_all(one for one in everything if device_of(one) in there)
    population = Population(
        model=reference.model,
        version=reference.version,
        start_ns=start_ns,
        end_ns=end_ns,
        devices=len(tally.names),
        windows=tally.windows,
        values=tally.values,
    )
    comparison = Comparison(
        seen=tally,
        expected=None,
        seen_population=population,
        expected_population=Population(model=reference.model, version=reference.version, is_reference=True),
        facts=facts,
        read_from="device hours",
    )
    return compare(comparison, alpha=alpha_of_look(settings))


def watch_outcomes(
    watch: OutcomeWatch, tally: Tally, *, settings: MonitorSettings
) -> tuple[OutcomeWatch, SignalFinding | None]:
    """The watch after the outcomes of one more look (new ones only), and the alarm, where it raises one.

    After an alarm the e-process starts again.
    """
    judged, right = tally.sums_by_unit(tally.outcomes)
    events, errors = judged, judged - right[:, 0]
    there = events > 0
    if not there.any():
        return msgspec.structs.replace(watch, looks=watch.looks + 1), None
    base_rate = _base_rate(watch, tally.reference)
    if base_rate is None:
        return msgspec.structs.replace(
            watch,
            first_errors=watch.first_errors + int(errors.sum()),
            first_events=watch.first_events + int(events.sum()),
            looks=watch.looks + 1,
        ), None
    shrunk = design_effect(errors[there], events[there])
    seen, wrong = float(events.sum()) / shrunk, float(errors.sum()) / shrunk
    masses = shiryaev_roberts.start() if not watch.log_masses else _masses(watch.log_masses)
    masses = shiryaev_roberts.update(masses, errors=wrong, events=seen, base_rate=base_rate)
    all_events, looks = watch.events + seen, watch.looks + 1
    per_week = all_events / looks * WEEK_S / settings.look_every_s
    between_alarms = max(per_week / (settings.false_alarms_per_week * (1 - LOOKS_SHARE)), 1.0)
    is_alarm = bool(shiryaev_roberts.is_alarm(masses, events_to_false_alarm=between_alarms))
    kept = shiryaev_roberts.start() if is_alarm else masses
    after = msgspec.structs.replace(
        watch,
        log_masses=[float(mass) if math.isfinite(mass) else None for mass in kept.tolist()],
        events=all_events,
        looks=looks,
    )
    if not is_alarm:
        return after, None
    usual, now = 1 - base_rate, float(right[:, 0].sum() / judged.sum())
    log_evidence = float(shiryaev_roberts.log_evidence(masses)) - math.log(max(all_events, 1.0))
    return after, SignalFinding(
        signal=OUTCOME_SIGNAL,
        kind=SignalKind.ACCURACY,
        verdict=Verdict.DRIFT,
        severity=severity_of(None, accuracy_loss=usual - now),
        sentence=(
            f"accuracy by outcomes fell below the {usual:.2f} that is usual: {now:.2f} in the latest "
            f"{int(judged.sum())} outcomes of {int(there.sum())} devices."
        ),
        devices=int(there.sum()),
        values=int(judged.sum()),
        e_value=math.exp(min(log_evidence, 27.0)),
        method="Shiryaev-Roberts mixture over the fleet's outcomes, shrunk by their design effect",
    )


def design_effect(errors: Matrix, events: Matrix) -> float:
    """By how much devices' errors `[devices]` of `events` vary more than independent ones would, at least 1.

    Pearson's chi-squared over its degrees of freedom (McCullagh and Nelder 1989, section 4.5).
    """
    rate = float(errors.sum() / events.sum())
    if len(errors) < 2 or not 0 < rate < 1:
        return 1.0
    expected = rate * events
    return max(1.0, float(((errors - expected) ** 2 / (expected * (1 - rate))).sum()) / (len(errors) - 1))


def points_of(report: DriftReport, extra: Sequence[SignalFinding], *, at_ns: int) -> list[Point]:
    """What a look leaves in the measurement `drift`: a point a signal."""
    return [
        Point(
            measurement="drift",
            at_ns=at_ns,
            tags={"model": report.model, "version": report.version, "feature": finding.signal},
            fields=_fields(finding),
        )
        for finding in (*report.signals, *extra)
    ]


def _fields(finding: SignalFinding) -> dict[str, float | int | str]:
    effect = finding.effect
    sizes = {} if effect is None else {"shift_sd": effect.shift_sd, "hellinger": effect.hellinger, "mmd": effect.mmd}
    numbers: dict[str, float | int | None] = {
        **sizes,
        "p": finding.p_value,
        "p_adjusted": finding.adjusted_p_value,
        "e": finding.e_value,
        "devices": finding.devices,
        "devices_moved": finding.devices_moved,
        "values": finding.values,
    }
    told = {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}
    return {**told, "verdict": finding.verdict.value, "severity": finding.severity.value}


def _base_rate(watch: OutcomeWatch, reference: Reference) -> float | None:
    promised = reference.expected_accuracy
    if promised is not None and promised < 1 and reference.values:
        errors, events = round((1 - promised) * reference.values), reference.values
    elif watch.first_events >= MIN_FIRST_OUTCOMES:
        errors, events = watch.first_errors, watch.first_events
    else:
        return None
    return float(np.clip(beta.ppf(BASELINE_CONFIDENCE, errors + 1, max(events - errors, 1)), 1e-6, 0.5))


def _masses(told: Sequence[float | None]) -> Matrix:
    return np.array([-math.inf if mass is None else mass for mass in told])
