"""How sure an answer deserves to be: the probability that it is right, by its winning score.

Isotonic regression of "right" on the score by the pool-adjacent-violators algorithm (Ayer et al. 1955; for classifiers
Zadrozny and Elkan 2002: "Transforming classifier scores into accurate multiclass probability estimates"), then few
enough points for a manifest. The probabilities of the samples it was made of sum to the number of right ones, but for
the doubt that is left at its ends.

It fails closed: without enough labelled samples, or without one wrong answer among them, nothing is known about what
a wrong answer looks like, and there is no calibration.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.manifest import ConfidenceCalibration

MIN_SAMPLES = 50
MAX_POINTS = 32
MAX_GROUPS = MAX_POINTS // 2
MIN_SAMPLES_PER_GROUP = 10
_GROUPS_AT_FIRST = 1024
_ALIKE = 1e-12
_SCORE_DIGITS, _CONFIDENCE_DECIMALS = 7, 5


def calibrate_confidence(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> ConfidenceCalibration | None:
    """The calibration from the winning scores `[n]` of samples that were not trained on, and whether each was right.

    None where there is too little to tell by; scores that are NaN are left out.
    """
    known = np.isfinite(scores)
    scores, right = scores[known], right[known]
    if len(scores) < MIN_SAMPLES or right.all():
        return None
    at, inverse = np.unique(scores, return_inverse=True)
    weights = np.bincount(inverse).astype(np.float64)
    shares = np.bincount(inverse, weights=right.astype(np.float64)) / weights
    points = _points(at, pooled(shares, weights), weights)
    rising: dict[float, float] = {}
    for score, confidence in points:
        rising[float(f"{score:.{_SCORE_DIGITS}g}")] = round(confidence, _CONFIDENCE_DECIMALS)
    return ConfidenceCalibration(scores=list(rising), confidences=list(rising.values()))


def pooled(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The numbers `[n]` that never fall and are nearest to `values` in weighted squares."""
    blocks: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, joined, length = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * joined) / (before[1] + joined)
            before[1] += joined
            before[2] += length
    return np.repeat([block[0] for block in blocks], [int(block[2]) for block in blocks])


def _points(
    at: NDArray[np.float64], shares: NDArray[np.float64], weights: NDArray[np.float64]
) -> list[tuple[float, float]]:
    """(score, share) of the lowest and the highest score of at most MAX_GROUPS groups of neighbours.

    A group has enough samples, because a handful at an end would be all right or all wrong by chance; groups whose
    shares are most alike are joined. An end that is all right or all wrong still is no certainty: it counts one answer
    of each kind more (Laplace's rule of succession).
    """
    starts = _starts(weights)
    totals = np.add.reduceat(weights, starts)
    means = np.clip(np.add.reduceat(shares * weights, starts) / totals, 0.0, 1.0)
    while len(starts) > 1:
        lost = np.diff(means) ** 2 / (1.0 / totals[1:] + 1.0 / totals[:-1])
        place = int(lost.argmin())
        if len(starts) <= MAX_GROUPS and lost[place] > _ALIKE:
            break
        both = totals[place] + totals[place + 1]
        means[place] = (means[place] * totals[place] + means[place + 1] * totals[place + 1]) / both
        totals[place] = both
        starts, totals, means = (np.delete(array, place + 1) for array in (starts, totals, means))
    if means[-1] >= 1.0:
        means[-1] = max(means[-2] if len(means) > 1 else 0.0, (totals[-1] + 1.0) / (totals[-1] + 2.0))
    if means[0] <= 0.0:
        means[0] = min(means[1] if len(means) > 1 else 1.0, 1.0 / (totals[0] + 2.0))
    ends = [*(starts[1:] - 1).tolist(), len(at) - 1]
    return [
        (float(at[place]), float(share))
        for start, end, share in zip(starts.tolist(), ends, means.tolist(), strict=True)
        for place in (start, end)
    ]


def _starts(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where groups of enough samples begin; what is left over at the end belongs to the last one."""
    quota = max(MIN_SAMPLES_PER_GROUP, int(weights.sum()) // _GROUPS_AT_FIRST)
    starts, held = [0], 0.0
    for place, weight in enumerate(weights.tolist()):
        if held >= quota:
            starts.append(place)
            held = 0.0
        held += weight
    if len(starts) > 1 and held < quota:
        starts.pop()
    return np.array(starts, dtype=np.int64)
