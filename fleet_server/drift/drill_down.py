"""Where a drift is and since when: segments, devices moved, onset. Pure.

Two decisions, in this order:
1. is there drift at all (`segment_evidence`): a signal's p-value is the smaller of the whole fleet's and of its most
   telling segment's, each allowed its share of the level (weighted Bonferroni): fourteen devices at one site are seen
   although the fleet's mean hardly moved, and a report's rate stays what it says;
2. which segments are told (`tell_segments`): e-BH over all signals and segments of the report, under any dependence,
   each p-value made an e-value by the calibrator that loses least there (Benjamini-Yekutieli's steps).
A segment differs from the rest of the fleet. Against the reference that may be so since ever: only devices held against
themselves (last week, the same hours) tell a move from a difference that was always there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fleet_server.drift.evidence import MIN_DEVICES, e_value_of
from fleet_server.drift.findings import Segment, SignalKind
from fleet_server.drift.onset import Onset, device_steps, find_onset
from fleet_server.drift.pairing import Judged, Pairing
from fleet_server.drift.segments import DeviceFacts, Segmentation, moved_devices, segment_devices, segment_p_values
from fleet_server.drift.signals import Matrix
from fleet_server.drift.tallies import Tally
from fleet_server.statistics.e_values import e_bh, step_calibrator

WHOLE_SHARE = 0.8
"""Of the level, for the fleet as a whole; the rest is for its segments."""
MIN_ERRORS_PER_SEGMENT = 10.0
"""Expected among the outcomes of a segment: p(1 - p) times their number."""
_ELSEWHERE = 1 / 3
"""Of a segment's move: with more of it in the rest of the fleet, the segment is not where the drift is, only most."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEvidence:
    """The segments of the devices of one signal, and the p-value of each."""

    segmentation: Segmentation
    p_values: Matrix

    def combined(self, whole: float) -> float:
        """The signal's p-value, of the fleet as a whole and of its segments."""
        if not len(self.p_values):
            return whole
        least = float(self.p_values.min()) * len(self.p_values)
        return min(1.0, whole / WHOLE_SHARE, least / (1 - WHOLE_SHARE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What is known of the place of a drift: `main` is the segment to name, the first of them; `moved` are devices."""

    segments: list[Segment]
    main: Segment | None
    elsewhere: bool
    moved: frozenset[str]
    onset: Onset | None
    direction: Matrix


def segment_evidence(
    tested: Sequence[Judged], seen: Tally, facts: Mapping[str, DeviceFacts], pairing: Pairing
) -> list[SegmentEvidence]:
    """The evidence on every segment of each signal; none where units are not a fleet's devices."""
    if pairing not in (Pairing.REFERENCE, Pairing.PAIRED):
        nothing = SegmentEvidence(
            segmentation=Segmentation(names=(), members=np.zeros((0, 0), bool)), p_values=np.ones(0)
        )
        return [nothing] * len(tested)
    whole = segment_devices(seen.names, facts, seen.variants)
    found = []
    for judged in tested:
        members = whole.members[:, judged.places]
        sizes = members.sum(axis=1)
        kept = np.flatnonzero((sizes >= MIN_DEVICES) & (members.shape[1] - sizes >= MIN_DEVICES))
        names = tuple(whole.names[row] for row in kept.tolist())
        segmentation = Segmentation(names=names, members=members[kept])
        p_values = segment_p_values(judged.deviations, segmentation.members, noise=judged.noise, values=judged.values)
        p_values[_too_few_errors(judged, segmentation.members)] = 1.0
        found.append(SegmentEvidence(segmentation=segmentation, p_values=p_values))
    return found


def _too_few_errors(judged: Judged, members: Mask) -> Mask:
    """Segments `[segments]` whose outcomes hold so few errors, or right answers, that their share has no normal law."""
    if judged.finding.kind is not SignalKind.ACCURACY:
        return np.zeros(len(members), dtype=bool)
    expected: Matrix = members @ judged.values * float(judged.noise[0, 0])
    return expected < MIN_ERRORS_PER_SEGMENT


def tell_segments(evidence: Sequence[SegmentEvidence], *, alpha: float) -> list[NDArray[np.int64]]:
    """Which segments of each signal are told."""
    p_values = np.concatenate([one.p_values for one in evidence]) if evidence else np.zeros(0)
    if not len(p_values):
        return [np.zeros(0, dtype=np.int64) for _ in evidence]
    e_values = [step_calibrator(float(p), hypotheses=len(p_values), alpha=alpha) for p in p_values]
    told = e_bh(e_values, alpha)
    bounds = np.cumsum([0, *(len(one.p_values) for one in evidence)])
    return [np.flatnonzero(told[low:high]) for low, high in pairwise(bounds.tolist())]


def drill_down(
    judged: Judged,
    evidence: SegmentEvidence,
    told: NDArray[np.int64],
    seen: Tally,
    *,
    start_ns: int,
    end_ns: int,
) -> Where:
    """Segments, devices and onset of a signal that drifts."""
    main = _main_segment(judged.deviations, evidence, told)
    inside = evidence.segmentation.members[main] if main is not None else np.ones(len(judged.names), dtype=bool)
    direction = _direction(judged.deviations[inside])
    peers = ~inside if main is not None else None
    moved = moved_devices(judged.deviations, direction=direction, noise=judged.noise, values=judged.values, peers=peers)
    segments = [_segment(judged, evidence, row, moved) for row in told.tolist()]
    named = None if main is None else _segment(judged, evidence, main, moved)
    ordered = sorted(segments, key=lambda segment: (segment != named, segment.p_value))
    rest = float((judged.deviations[~inside].mean(axis=0)) @ direction) if main is not None else 0.0
    size = float(judged.deviations[inside].mean(axis=0) @ direction)
    chosen = inside & moved if int((inside & moved).sum()) >= MIN_DEVICES else inside
    return Where(
        segments=ordered,
        main=named,
        elsewhere=rest > _ELSEWHERE * size,
        moved=frozenset(judged.names[place] for place in np.flatnonzero(moved).tolist()),
        onset=onset_of(judged, seen, chosen, direction, start_ns=start_ns, end_ns=end_ns),
        direction=direction,
    )


def onset_of(
    judged: Judged, seen: Tally, chosen: Mask, direction: Matrix, *, start_ns: int, end_ns: int
) -> Onset | None:
    """The onset of a signal's drift in the chosen `[units]` of those judged; None where none can be told."""
    if judged.course is None:
        return None
    expected = np.zeros(len(seen.names))
    expected[judged.places] = np.broadcast_to(judged.baseline @ direction, (len(judged.names),))
    means, steps = device_steps(judged.course, expected=expected, direction=direction)
    rows = judged.places[chosen]
    return find_onset(means[rows], steps, step_ns=seen.step_ns, start_ns=start_ns, end_ns=end_ns)


def refined_onset(judged: Judged, windows: Tally, direction: Matrix, *, start_ns: int, end_ns: int) -> Onset | None:
    """The onset of a signal judged elsewhere, in finer steps of some of its devices' windows."""
    course = windows.embedding_course if judged.finding.kind is SignalKind.EMBEDDING else None
    for counted in windows.counted:
        if (counted.signal.name, counted.signal.kind) == (judged.finding.signal, judged.finding.kind):
            course = counted.course
    if course is None:
        return None
    expected = dict(zip(judged.names, np.broadcast_to(judged.baseline @ direction, (len(judged.names),)), strict=True))
    rows = np.array([name in expected for name in windows.names], dtype=bool)
    base = np.array([expected.get(name, 0.0) for name in windows.names])
    means, steps = device_steps(course, expected=base, direction=direction)
    return find_onset(means[rows], steps, step_ns=windows.step_ns, start_ns=start_ns, end_ns=end_ns)


def _main_segment(deviations: Matrix, evidence: SegmentEvidence, told: NDArray[np.int64]) -> int | None:
    """The told segment with the least p-value among those that lie further from what was expected than the rest."""
    candidates = []
    for row in told.tolist():
        inside = evidence.segmentation.members[row]
        own, rest = (float(np.linalg.norm(deviations[mask].mean(axis=0))) for mask in (inside, ~inside))
        if own > rest:
            candidates.append((float(evidence.p_values[row]), -own, row))
    return min(candidates)[2] if candidates else None


def _direction(deviations: Matrix) -> Matrix:
    mean = deviations.mean(axis=0)
    length = float(np.linalg.norm(mean))
    return np.asarray(mean / length if length > 0 else mean)


def _segment(judged: Judged, evidence: SegmentEvidence, row: int, moved: Mask) -> Segment:
    inside = evidence.segmentation.members[row]
    by, value = evidence.segmentation.names[row]
    p_value = float(evidence.p_values[row])
    return Segment(
        by=by,
        value=value,
        devices=int(inside.sum()),
        devices_moved=int((inside & moved).sum()),
        p_value=p_value,
        e_value=e_value_of(p_value),
        shift_sd=None if judged.moves is None else float(judged.moves[inside].mean()),
    )
