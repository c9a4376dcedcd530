"""The verdict on each signal, the numbers behind it, and one sentence that says it. Pure.

Invariants:
- too little data is "not enough evidence" and never "no drift";
- `drift` needs an adjusted p-value at or under alpha: over all signals of a version together, a fleet without
  drift raises an alarm in at most that share of looks;
- evidence (p) and size (shift, divergences) stand side by side, for a large fleet sees shifts that do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec
import numpy as np
from msgspec import Struct

from fleet_server.drift.evidence import (
    MIN_DEVICES,
    MIN_REFERENCE_VALUES,
    MIN_VALUES_PER_DEVICE,
    Evidence,
    compare_devices,
    holm,
)
from fleet_server.drift.signals import Counted, Counts, Signal
from fleet_server.statistics.divergences import hellinger_squared, jsd, ks_distance, psi, smoothed, wasserstein_1

ALPHA = 0.05


class Verdict(StrEnum):
    """What is said of a signal, or of a version."""

    DRIFT = "drift"
    NOT_FOUND = "not_found"
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"


class Divergences(Struct, frozen=True, kw_only=True):
    """How far the mean of the devices' shares lies from the reference; `wasserstein_1` is in the feature's unit."""

    psi: float
    jsd: float
    hellinger_squared: float
    ks_distance: float | None
    wasserstein_1: float | None


class SignalReport(Struct, frozen=True, kw_only=True):
    """One signal. `p_value` is of this signal alone, `adjusted_p_value` allows for all signals of the version."""

    signal: str
    kind: str
    verdict: Verdict
    sentence: str
    devices: int
    devices_left_out: int
    values: int
    reference_values: int
    beyond_reference: int
    unusable: int
    torn_sketches: int
    p_value: float | None = None
    adjusted_p_value: float | None = None
    shift: float | None = None
    shift_interval: tuple[float, float] | None = None
    effect: Divergences | None = None


class DriftReport(Struct, frozen=True, kw_only=True):
    """One model version over a span. `alpha` is the false-alarm rate of the whole report, for one look."""

    model: str
    version: str
    start_ns: int
    end_ns: int
    windows: int
    windows_truncated: bool
    alpha: float
    verdict: Verdict
    sentence: str
    signals: list[SignalReport]


def report_drift(
    signals: Sequence[Signal],
    counted: Sequence[Counted],
    *,
    model: str,
    version: str,
    start_ns: int,
    end_ns: int,
    windows: int,
    windows_truncated: bool,
    alpha: float = ALPHA,
) -> DriftReport:
    """Judge every signal and the version; `counted` are the signals' counts, in the same order."""
    judged = [
        _judge(signal, sums, alpha=alpha / max(1, len(signals))) for signal, sums in zip(signals, counted, strict=True)
    ]
    reports = _adjust(judged, alpha)
    verdict = _overall(reports)
    return DriftReport(
        model=model,
        version=version,
        start_ns=start_ns,
        end_ns=end_ns,
        windows=windows,
        windows_truncated=windows_truncated,
        alpha=alpha,
        verdict=verdict,
        sentence=_say_overall(f"{model} {version}", verdict, reports),
        signals=reports,
    )


def _judge(signal: Signal, sums: Counted, *, alpha: float) -> SignalReport:
    enough = [cells for _, cells in sorted(sums.by_device.items()) if cells.sum() >= MIN_VALUES_PER_DEVICE]
    reference_values = int(signal.reference.sum())
    report = SignalReport(
        signal=signal.name,
        kind=signal.kind.value,
        verdict=Verdict.NOT_ENOUGH_EVIDENCE,
        sentence="",
        devices=len(enough),
        devices_left_out=len(sums.by_device) - len(enough),
        values=int(sum(int(cells.sum()) for cells in enough)),
        reference_values=reference_values,
        beyond_reference=sums.beyond,
        unusable=sums.unusable,
        torn_sketches=sums.torn,
    )
    if lacking := _lacking(report, len(signal.reference)):
        return msgspec.structs.replace(report, sentence=f"{signal.name}: not enough evidence, {lacking}.")
    counts = np.stack(enough)
    evidence = compare_devices(counts, signal.reference, ordered=signal.edges is not None, alpha=alpha)
    interval = evidence.shift_interval
    return msgspec.structs.replace(
        report,
        verdict=Verdict.NOT_FOUND,
        p_value=evidence.p_value,
        shift=evidence.shift,
        shift_interval=(interval.lower, interval.upper) if interval else None,
        effect=_divergences(signal, counts),
        sentence=_say_size(evidence) + _say_unusable(sums.unusable),
    )


def _lacking(report: SignalReport, cells: int) -> str:
    """What keeps a signal from being judged, "" when nothing does."""
    if cells < 2:
        return "the reference has a single value, so nothing could be seen to move"
    if report.reference_values < MIN_REFERENCE_VALUES:
        return f"the reference has {report.reference_values} values and {MIN_REFERENCE_VALUES} are needed"
    if report.devices < MIN_DEVICES:
        return (
            f"{report.devices} devices saw {MIN_VALUES_PER_DEVICE} values or more and {MIN_DEVICES} are needed "
            "to know how devices differ"
        )
    return ""


def _divergences(signal: Signal, counts: Counts) -> Divergences:
    shares = (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    seen, reference = smoothed(shares * counts.sum()), smoothed(signal.reference)
    ordered = signal.edges is not None
    return Divergences(
        psi=psi(seen, reference),
        jsd=jsd(seen, reference),
        hellinger_squared=hellinger_squared(seen, reference),
        ks_distance=ks_distance(seen, reference) if ordered else None,
        wasserstein_1=wasserstein_1(seen, reference, signal.edges) if signal.edges is not None else None,
    )


def _adjust(judged: Sequence[SignalReport], alpha: float) -> list[SignalReport]:
    tested = [report.p_value for report in judged if report.p_value is not None]
    adjusted = iter(holm(tested))
    reports = []
    for report in judged:
        if report.p_value is None:
            reports.append(report)
            continue
        p_value = next(adjusted)
        verdict = Verdict.DRIFT if p_value <= alpha else Verdict.NOT_FOUND
        found = "differs from the reference" if verdict is Verdict.DRIFT else "no drift was found"
        sentence = (
            f"{report.signal}: {found} ({report.devices} devices, {report.values} values, "
            f"p = {p_value:.2g} allowing for {len(tested)} signals){report.sentence}."
        )
        reports.append(msgspec.structs.replace(report, adjusted_p_value=p_value, verdict=verdict, sentence=sentence))
    return reports


def _say_size(evidence: Evidence) -> str:
    """The end of a sentence: which way and how far a number moved, or how far it could have moved unseen."""
    if evidence.shift is None or evidence.shift_interval is None:
        return ""
    interval = evidence.shift_interval
    return f"; values rank {evidence.shift:+.1%} against it (from {interval.lower:+.1%} to {interval.upper:+.1%})"


def _say_unusable(values: int) -> str:
    return f"; {values} more values were missing, NaN or infinite" if values else ""


def _overall(reports: Sequence[SignalReport]) -> Verdict:
    verdicts = {report.verdict for report in reports}
    if Verdict.DRIFT in verdicts:
        return Verdict.DRIFT
    # one signal that cannot be judged leaves open whether the version drifts
    return Verdict.NOT_FOUND if verdicts == {Verdict.NOT_FOUND} else Verdict.NOT_ENOUGH_EVIDENCE


def _say_overall(what: str, verdict: Verdict, reports: Sequence[SignalReport]) -> str:
    if not reports:
        return f"{what}: not enough evidence, its bundle ships no reference to compare with."
    moved = [report.signal for report in reports if report.verdict is Verdict.DRIFT]
    silent = [report.signal for report in reports if report.verdict is Verdict.NOT_ENOUGH_EVIDENCE]
    open_words = f" Not enough evidence on {', '.join(silent)}." if silent else ""
    if verdict is Verdict.DRIFT:
        return f"{what}: {len(moved)} of {len(reports)} signals differ from training: {', '.join(moved)}.{open_words}"
    if verdict is Verdict.NOT_FOUND:
        return f"{what}: no drift was found in {len(reports)} signals."
    return f"{what}: no statement is possible.{open_words}"
