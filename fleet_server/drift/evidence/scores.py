"""Counts in cells as a few scores whose means are compared: what a test looks at.

- Numbers: the first MOMENTS polynomials that are orthonormal under the reference, in ranks (Neyman's smooth test,
  1937): location, spread, skew, peakedness.
- Classes: membership in each class that the reference knows well; the others are one class.
"""

from __future__ import annotations

import numpy as np

from fleet_server.drift.evidence.result import Counts, Matrix
from fleet_server.statistics.divergences import smoothed

MOMENTS = 4
MAX_CLASSES_TESTED = 20
MIN_REFERENCE_PER_CLASS = 10


def moment_scores(reference: Counts) -> Matrix:
    """Scores `[bins, moments]` of a numeric reference `[bins]`: orthonormal polynomials of the bins' middle ranks."""
    weights = smoothed(reference)
    powers = np.vander(ranks(reference) - 0.5, min(MOMENTS, len(weights) - 1) + 1, increasing=True)
    orthonormal, triangle = np.linalg.qr(np.sqrt(weights)[:, None] * powers)
    scores: Matrix = (orthonormal / np.sqrt(weights)[:, None] * np.sign(np.diag(triangle)))[:, 1:]
    return scores


def class_scores(reference: Counts) -> Matrix:
    """Scores `[classes, kept]` of a reference over classes: membership in each class that is well known there."""
    common = np.argsort(-reference, kind="stable")[:MAX_CLASSES_TESTED]
    kept = np.sort(common[reference[common] >= MIN_REFERENCE_PER_CLASS])
    scores = np.zeros((len(reference), len(kept) + 1))
    scores[kept, np.arange(len(kept))] = 1.0
    scores[:, -1] = 1.0 - scores[:, :-1].sum(axis=1)
    return scores if scores[:, -1].any() else scores[:, :-1]


def ranks(reference: Counts) -> Matrix:
    """The middle rank of each cell of the reference, 0 to 1."""
    weights = smoothed(reference)
    middles: Matrix = np.cumsum(weights) - weights / 2
    return middles
