"""The evidence on each signal of one population against another, or against the reference. Pure.

Each signal comes out as a `Judged`: the finding without its verdict, and how far each unit lies from what was expected,
from which segments, devices moved and onsets are told. The tests are those of `evidence`; here they are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np

from fleet_protocol.embedding_sums import FEATURE_SCALE
from fleet_protocol.manifest import RandomFeatureReference
from fleet_server.drift import evidence
from fleet_server.drift.accuracies import judge_accuracy, judge_estimated_accuracy
from fleet_server.drift.evidence import MIN_REFERENCE_VALUES, EmbeddingSums, Evidence
from fleet_server.drift.findings import Distribution, Severity, SignalFinding, SignalKind, Verdict
from fleet_server.drift.pairing import Judged, Pairing, choose_sides, lacking_units
from fleet_server.drift.signals import EMBEDDING, Counts, Matrix, Signal
from fleet_server.drift.tallies import EMBEDDING_SCORES, Tally
from fleet_server.statistics.divergences import smoothed


def judge_all(seen: Tally, expected: Tally | None, pairing: Pairing, *, alpha: float) -> Iterator[Judged]:
    """Every signal of the seen population's reference, in its order, then what there is of embedding and accuracy."""
    for place in range(len(seen.counted)):
        yield _judge_cells(place, seen, expected, pairing, alpha)
    if seen.reference.embedding is not None:
        yield _judge_embedding(seen, expected, pairing, alpha, seen.reference.embedding)
    if not pairing.is_one_device:
        accuracies = (judge_estimated_accuracy(seen, expected, pairing), judge_accuracy(seen, expected, pairing, alpha))
        yield from (judged for judged in accuracies if judged is not None)


def distribution_of(place: int, seen: Tally, expected: Tally | None) -> Distribution:
    """Both sides of a signal with cells, each device weighing the same."""
    signal = seen.counted[place].signal
    of_expected = signal.reference[None] if expected is None else _fitting(place, seen, expected)
    edges = [] if signal.edges is None else signal.edges.tolist()
    labels = list(signal.labels) or [str(index) for index in range(len(signal.reference))]
    return Distribution(
        seen=_mean_shares(seen.unit_counts(place)).tolist(),
        expected=(_mean_shares(of_expected) if of_expected is not None else np.zeros(0)).tolist(),
        edges=edges,
        labels=[] if edges else labels,
    )


def _judge_cells(place: int, seen: Tally, expected: Tally | None, pairing: Pairing, alpha: float) -> Judged:
    counted, signal = seen.counted[place], seen.counted[place].signal
    cells = seen.unit_counts(place)
    others = None if expected is None else _fitting(place, seen, expected)
    finding = SignalFinding(
        signal=signal.name,
        kind=signal.kind,
        verdict=Verdict.NOT_ENOUGH_EVIDENCE,
        severity=Severity.NONE,
        sentence="",
        beyond_reference=counted.beyond,
        unusable=counted.unusable,
        torn_sketches=counted.torn,
    )
    if expected is not None and others is None:
        return Judged(finding=finding, lacking="the two versions count it in different bins")
    other_totals = None if others is None else others.sum(axis=1)
    sides = choose_sides(cells.sum(axis=1), other_totals, seen=seen, expected=expected, pairing=pairing)
    own = cells[sides.seen]
    of_expected = signal.reference[None] if others is None else others[sides.expected]
    values = int(own.sum())
    finding = msgspec.structs.replace(
        finding,
        devices=1 if pairing.is_one_device else len(own),
        devices_left_out=sides.left_out,
        values=values,
        reference_values=int(of_expected.sum()),
    )
    lacking = _lacking_reference(signal, expected is None) or lacking_units(sides, values=values, pairing=pairing)
    if lacking:
        return Judged(finding=finding, lacking=lacking)
    found = _evidence(own, of_expected, signal, pairing, alpha)
    scores, weights = counted.scores, smoothed(signal.reference)
    centred = scores - weights @ scores
    baseline = _baseline(of_expected, scores, pairing) if expected is not None else weights @ scores
    moves = None
    if signal.standard_values is not None:
        middles = signal.standard_values
        moves = _means(own, middles[:, None])[:, 0]
        moves = moves - (_baseline(of_expected, middles[:, None], pairing)[..., 0] if expected is not None else 0.0)
    effect = found.effect
    if effect.shift_sd is None and moves is not None:
        effect = msgspec.structs.replace(effect, shift_sd=float(moves.mean()))
    return Judged(
        finding=msgspec.structs.replace(finding, **_facts(found), effect=effect),
        names=tuple(seen.names[unit] for unit in sides.seen.tolist()),
        deviations=_means(own, scores) - baseline,
        baseline=baseline,
        noise=(centred * weights[:, None]).T @ centred,
        values=own.sum(axis=1).astype(np.float64),
        moves=moves,
        course=counted.course,
        places=sides.seen,
    )


def _evidence(own: Counts, of_expected: Counts, signal: Signal, pairing: Pairing, alpha: float) -> Evidence:
    edges = signal.edges
    if pairing is Pairing.REFERENCE:
        return evidence.against_reference(own, signal.reference, edges=edges, alpha=alpha)
    if pairing is Pairing.BETWEEN:
        return evidence.between_devices(own, of_expected, edges=edges, alpha=alpha)
    if pairing is Pairing.PAIRED:
        return evidence.paired_devices(own, of_expected, edges=edges, alpha=alpha)
    if pairing is Pairing.ONE_DEVICE:
        return evidence.one_device(own, signal.reference, edges=edges, alpha=alpha)
    return evidence.one_device_over_time(own, of_expected, edges=edges, alpha=alpha)


def _judge_embedding(
    seen: Tally, expected: Tally | None, pairing: Pairing, alpha: float, reference: RandomFeatureReference
) -> Judged:
    own, others = seen.embedding, expected.embedding if expected is not None else None
    finding = SignalFinding(
        signal=EMBEDDING,
        kind=SignalKind.EMBEDDING,
        verdict=Verdict.NOT_ENOUGH_EVIDENCE,
        severity=Severity.NONE,
        sentence="",
        torn_sketches=seen.torn_embeddings,
    )
    if expected is not None and not _same_features(reference, expected.reference.embedding):
        return Judged(finding=finding, lacking="the two versions sum different random features")
    totals = None if others is None else others.counts.astype(np.float64)
    sides = choose_sides(own.counts.astype(np.float64), totals, seen=seen, expected=expected, pairing=pairing)
    own = EmbeddingSums(sums=own.sums[sides.seen], counts=own.counts[sides.seen])
    if others is not None:
        others = EmbeddingSums(sums=others.sums[sides.expected], counts=others.counts[sides.expected])
    values = int(own.counts.sum())
    finding = msgspec.structs.replace(
        finding,
        devices=1 if pairing.is_one_device else len(own.counts),
        devices_left_out=sides.left_out,
        values=values,
        reference_values=reference.count if others is None else int(others.counts.sum()),
    )
    if lacking := lacking_units(sides, values=values, pairing=pairing):
        return Judged(finding=finding, lacking=lacking)
    found = _embedding_evidence(own, others, pairing, alpha, reference)
    baseline = np.array(reference.sums) / max(reference.count, 1) * math.sqrt(len(reference.sums) / 2)
    if others is not None:
        of_others = others.sums / others.counts[:, None] / FEATURE_SCALE
        baseline = of_others if pairing is Pairing.PAIRED else of_others.mean(axis=0)
    kept = slice(0, min(EMBEDDING_SCORES, own.sums.shape[1]))
    return Judged(
        finding=msgspec.structs.replace(finding, **_facts(found), effect=found.effect),
        names=tuple(seen.names[unit] for unit in sides.seen.tolist()),
        deviations=(own.sums / own.counts[:, None] / FEATURE_SCALE - baseline)[:, kept],
        baseline=baseline[..., kept],
        noise=np.eye(EMBEDDING_SCORES)[kept, kept] / 2,  # a cosine's variance is at most 1/2 where phases are uniform
        values=own.counts.astype(np.float64),
        course=seen.embedding_course,
        places=sides.seen,
    )


def _embedding_evidence(
    own: EmbeddingSums,
    others: EmbeddingSums | None,
    pairing: Pairing,
    alpha: float,
    reference: RandomFeatureReference,
) -> Evidence:
    if others is None:
        if pairing is Pairing.REFERENCE:
            return evidence.embedding_against_reference(own, reference, alpha=alpha)
        return evidence.embedding_one_device(own, reference, alpha=alpha)
    if pairing is Pairing.BETWEEN:
        return evidence.embedding_between_devices(own, others, alpha=alpha)
    if pairing is Pairing.PAIRED:
        return evidence.embedding_paired_devices(own, others, alpha=alpha)
    return evidence.embedding_one_device_over_time(own, others, reference, alpha=alpha)


def _facts(found: Evidence) -> dict[str, float | str]:
    return {"p_value": found.p_value, "e_value": found.e_value, "method": found.method}


def _lacking_reference(signal: Signal, is_reference: bool) -> str:
    if len(signal.reference) < 2:
        return "the reference has a single value, so nothing could be seen to move"
    values = int(signal.reference.sum())
    if is_reference and values < MIN_REFERENCE_VALUES:
        return f"the reference has {values} values and {MIN_REFERENCE_VALUES} are needed"
    return ""


def _fitting(place: int, seen: Tally, expected: Tally) -> Counts | None:
    """The expected side's counts `[units, cells]` of the same signal in the same cells; None where it has none such."""
    signal = seen.counted[place].signal
    for other, counted in enumerate(expected.counted):
        if (counted.signal.name, counted.signal.kind) == (signal.name, signal.kind):
            edges = counted.signal.edges
            same = len(counted.signal.reference) == len(signal.reference) and (
                signal.edges is None
                if edges is None
                else signal.edges is not None and np.array_equal(edges, signal.edges)
            )
            return expected.unit_counts(other) if same else None
    return None


def _same_features(first: RandomFeatureReference, second: RandomFeatureReference | None) -> bool:
    return second is not None and (first.tensor, first.seed, first.bandwidth, len(first.sums)) == (
        second.tensor,
        second.seed,
        second.bandwidth,
        len(second.sums),
    )


def _means(cells: Counts, scores: Matrix) -> Matrix:
    means: Matrix = cells @ scores / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    return means


def _baseline(cells: Counts, scores: Matrix, pairing: Pairing) -> Matrix:
    """What was expected of each unit `[units, scores]`, or of all of them `[scores]`."""
    means = _means(cells, scores)
    return means if pairing is Pairing.PAIRED else np.asarray(means.mean(axis=0))


def _mean_shares(cells: Counts) -> Matrix:
    counted = cells[cells.sum(axis=1) > 0]
    if not len(counted):
        return np.zeros(cells.shape[1])
    return np.asarray((counted / counted.sum(axis=1, keepdims=True)).mean(axis=0))
