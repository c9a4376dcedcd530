"""The verdict on each signal and on a comparison, with the numbers behind it and a sentence that says it. Pure.

Steps: the evidence on each signal (`judging`), on its segments (`drill_down`), one false-alarm rate over all signals,
verdicts, where and since when (of drifting signals only), severity, words. Invariants:
- too little data is "not enough evidence" and never "no drift"; one signal that cannot be judged leaves the whole open;
- `drift` needs an adjusted p-value at or under alpha: over all signals and segments of a comparison together, a fleet
  without drift raises an alarm in at most that share of looks;
- evidence (p, e) and size (effect, severity) stand side by side, for a large fleet sees shifts that do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from fleet_server.drift.accuracies import estimated_accuracy_of
from fleet_server.drift.drill_down import SegmentEvidence, Where, drill_down, segment_evidence, tell_segments
from fleet_server.drift.evidence import adjusted_p_values
from fleet_server.drift.findings import (
    Distribution,
    DriftReport,
    Population,
    Severity,
    SignalFinding,
    SignalKind,
    Verdict,
)
from fleet_server.drift.judging import distribution_of, judge_all
from fleet_server.drift.onset import Onset
from fleet_server.drift.pairing import Judged, Pairing, pairing_of
from fleet_server.drift.populations import name_of
from fleet_server.drift.segments import DeviceFacts
from fleet_server.drift.severity import severity_of, worst
from fleet_server.drift.signals import ESTIMATED_ACCURACY
from fleet_server.drift.tallies import Tally
from fleet_server.drift.timelines import timeline_of
from fleet_server.drift.wording import (
    say_accuracy,
    say_drift,
    say_lacking,
    say_not_found,
    say_report,
    say_since,
    say_unusable,
)

ALPHA = 0.05
Refine = Callable[[Judged, Where, Onset], Onset]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two populations and what was read of them; `expected` None is the reference. `facts` are of devices, by name."""

    seen: Tally
    expected: Tally | None
    seen_population: Population
    expected_population: Population
    facts: Mapping[str, DeviceFacts] = field(default_factory=dict)
    windows_truncated: bool = False
    read_from: str = "windows"
    devices_sampled_of: int = 0

    @property
    def pairing(self) -> Pairing:
        """Which test is right."""
        return pairing_of(
            self.seen,
            self.expected,
            seen_device=self.seen_population.device,
            expected_device=self.expected_population.device,
        )


def compare(
    comparison: Comparison, *, alpha: float = ALPHA, detail: bool = False, refine: Refine | None = None
) -> DriftReport:
    """Judge every signal and the whole. `detail` adds distributions and timelines; `refine` looks closer at an onset.

    Raises InvalidRequestError for an alpha outside (0, 1).
    """
    seen, pairing = comparison.seen, comparison.pairing
    judged = list(judge_all(seen, comparison.expected, pairing, alpha=alpha))
    tested = [one for one in judged if not one.lacking]
    segments = segment_evidence(tested, seen, comparison.facts, pairing)
    combined = [_combined(one, evidence) for one, evidence in zip(tested, segments, strict=True)]
    adjusted = adjusted_p_values([one.finding.kind for one in tested], combined) if tested else []
    drifts = [place for place, p_value in enumerate(adjusted) if p_value <= alpha]
    told = tell_segments([segments[place] for place in drifts], alpha=alpha)
    population = comparison.seen_population
    wheres = {
        tested[place].finding.signal: drill_down(
            tested[place],
            segments[place],
            rows,
            seen,
            start_ns=population.start_ns,
            end_ns=population.end_ns,
        )
        for place, rows in zip(drifts, told, strict=True)
    }
    for place in drifts:
        where = wheres[tested[place].finding.signal]
        if refine is not None and where.onset is not None:
            closer = replace(where, onset=refine(tested[place], where, where.onset))
            wheres[tested[place].finding.signal] = closer
    facts = _Facts(
        comparison=comparison,
        estimated=next((one for one in tested if one.finding.signal == ESTIMATED_ACCURACY), None),
        tests=len(tested),
        wheres=wheres,
        detail=detail,
    )
    p_values = {one.finding.signal: (p, a) for one, p, a in zip(tested, combined, adjusted, strict=True)}
    findings = [_finding(one, facts, p_values.get(one.finding.signal)) for one in judged]
    return _report(findings, facts, alpha)


def overall(findings: Sequence[SignalFinding]) -> Verdict:
    """The verdict on a whole comparison."""
    verdicts = {finding.verdict for finding in findings}
    if Verdict.DRIFT in verdicts:
        return Verdict.DRIFT
    # one signal that cannot be judged leaves open whether the version drifts
    return Verdict.NOT_FOUND if verdicts == {Verdict.NOT_FOUND} else Verdict.NOT_ENOUGH_EVIDENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the findings of one comparison share."""

    comparison: Comparison
    estimated: Judged | None
    tests: int
    wheres: Mapping[str, Where]
    detail: bool


def _combined(judged: Judged, evidence: SegmentEvidence) -> float:
    p_value = judged.finding.p_value
    return evidence.combined(1.0 if p_value is None else p_value)


def _finding(judged: Judged, facts: _Facts, p_values: tuple[float, float] | None) -> SignalFinding:
    comparison, finding = facts.comparison, judged.finding
    if facts.detail:
        finding = msgspec.structs.replace(
            finding,
            distribution=_distribution(finding, comparison),
            timeline=[] if comparison.pairing.is_one_device else timeline_of(judged, comparison.seen),
        )
    if p_values is None:
        return msgspec.structs.replace(finding, sentence=say_lacking(finding, judged.lacking) + ".")
    combined, adjusted = p_values
    finding = msgspec.structs.replace(finding, p_value=combined, adjusted_p_value=adjusted)
    where = facts.wheres.get(finding.signal)
    if where is None:
        sentence = say_not_found(
            judged,
            adjusted=adjusted,
            tests=facts.tests,
            compared_with=name_of(comparison.expected_population, beside=comparison.seen_population),
        )
        return msgspec.structs.replace(finding, verdict=Verdict.NOT_FOUND, sentence=sentence + ".")
    return _drift(judged, finding, where, facts)


def _drift(judged: Judged, finding: SignalFinding, where: Where, facts: _Facts) -> SignalFinding:
    comparison, onset = facts.comparison, where.onset
    means = _means_there(facts.estimated, judged, where)
    loss = judged.loss if judged.loss is not None else means[0] - means[1] if means is not None else None
    is_estimate = finding.signal == ESTIMATED_ACCURACY or finding.kind is SignalKind.ACCURACY
    distribution = _distribution(finding, comparison) if finding.kind is SignalKind.CLASSES else None
    sentence = say_drift(
        judged,
        moved=len(where.moved),
        segment=where.main,
        elsewhere=where.elsewhere,
        since=say_since(onset, step_ns=comparison.seen.step_ns, end_ns=comparison.seen_population.end_ns),
        shares=None if distribution is None else (np.array(distribution.expected), np.array(distribution.seen)),
        labels=[] if distribution is None else distribution.labels,
    )
    sentence += "" if is_estimate else say_accuracy(means)
    sized = finding.effect
    if sized is not None and where.main is not None and where.main.shift_sd is not None:
        sized = msgspec.structs.replace(sized, shift_sd=where.main.shift_sd)
    return msgspec.structs.replace(
        finding,
        verdict=Verdict.DRIFT,
        severity=severity_of(sized, accuracy_loss=loss),
        sentence=sentence + say_unusable(finding) + ".",
        devices_moved=len(where.moved),
        segments=where.segments,
        onset_ns=onset.at_ns if onset else None,
        onset_earliest_ns=onset.earliest_ns if onset else None,
        onset_latest_ns=onset.latest_ns if onset else None,
    )


def _means_there(estimated: Judged | None, judged: Judged, where: Where) -> tuple[float, float] | None:
    """The accuracy that was expected and is estimated on the devices that moved, or on all of them."""
    if estimated is None or estimated.means is None:
        return None
    rows = [place for place, name in enumerate(estimated.names) if name in where.moved]
    if not rows:
        return estimated.means
    usual = float(estimated.baseline[rows].mean())
    return usual, usual + float(estimated.deviations[rows].mean())


def _distribution(finding: SignalFinding, comparison: Comparison) -> Distribution | None:
    for place, counted in enumerate(comparison.seen.counted):
        if counted.signal.name == finding.signal and counted.signal.kind is finding.kind:
            return distribution_of(place, comparison.seen, comparison.expected)
    return None


def _report(findings: Sequence[SignalFinding], facts: _Facts, alpha: float) -> DriftReport:
    comparison, population = facts.comparison, facts.comparison.seen_population
    verdict = overall(findings)
    drifts = [finding for finding in findings if finding.verdict is Verdict.DRIFT]
    rank = {Severity.NONE: 0, Severity.LOW: 1, Severity.MEDIUM: 2, Severity.HIGH: 3}
    top = max(drifts, key=lambda finding: (rank[finding.severity], -(finding.adjusted_p_value or 0.0)), default=None)
    estimate = estimated_accuracy_of(comparison.seen)
    promised = facts.estimated.means if facts.estimated is not None else None
    reference = comparison.seen.reference
    return DriftReport(
        model=population.model,
        version=population.version,
        start_ns=population.start_ns,
        end_ns=population.end_ns,
        windows=population.windows,
        windows_truncated=comparison.windows_truncated,
        alpha=alpha,
        verdict=verdict,
        severity=worst([finding.severity for finding in drifts]),
        sentence=say_report(
            name_of(population),
            verdict,
            findings,
            compared_with=name_of(comparison.expected_population, beside=population),
            top=top,
        ),
        seen=population,
        expected=comparison.expected_population,
        estimated_accuracy=None if estimate is None else estimate[0],
        expected_accuracy=promised[0] if promised is not None else reference.expected_accuracy,
        signals=list(findings),
        pairing=comparison.pairing.value,
        read_from=comparison.read_from,
        devices_sampled_of=comparison.devices_sampled_of,
    )
