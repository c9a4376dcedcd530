"""Devices against the reference: the mean of devices' scores against the reference's (`scores`, `quadratic`).

The variance of that difference has two parts: how devices differ, over their number; and the reference's own sampling
error, for it is a sample too. How devices differ is seen twice, and the larger counts:
- between these devices;
- as the spread of the reference that is not found within devices. Five devices can happen to be alike although one in
  ten of the fleet is quite different; but the reference holds values of such devices too, so what is missing of its
  spread within each device must lie between devices. Without it, a fleet of which every tenth device lies 3 spreads
  away raises 32 % false alarms with five devices, and a class that two in a hundred values have raises 49 %. Its price:
values that vary less than they did look as if devices differed more, and a spread of 0.7 of the reference's, which 12
devices could show, takes 50 to be found; shifts and wider spreads are found as before.

Why no permutation: there is one reference, not a second group of devices to exchange labels with, and flipping the
signs of five deviations cannot give a p-value below 1/16. Devices that change together (day and night, one shared
light) are not independent: compare whole days.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fleet_server.drift.evidence.effects import fleet_effect
from fleet_server.drift.evidence.quadratic import (
    NO_VARIANCE,
    VariancePart,
    dempster_p_value,
    mean_interval,
    variance_part,
)
from fleet_server.drift.evidence.result import (
    Counts,
    Evidence,
    Matrix,
    check_counts,
    check_edges_fit,
    e_value_of,
    nothing_to_say,
    shares,
)
from fleet_server.drift.evidence.scores import class_scores, moment_scores, ranks
from fleet_server.drift.findings import Effect
from fleet_server.statistics.divergences import smoothed
from fleet_server.statistics.intervals import Interval, check_level

MIN_DEVICES = 5
"""Fewer devices say too little of how devices differ."""
MIN_VALUES_PER_DEVICE = 20
"""A device that saw fewer is left out: its shares are mostly chance."""
MIN_REFERENCE_VALUES = 30
METHOD = "device means against the reference (Dempster)"


def against_reference(
    counts: Counts,
    reference: Counts,
    *,
    edges: Matrix | None,
    alpha: float = 0.05,
    seed: int = 0,
    effects: bool = True,
) -> Evidence:
    """Hold devices' counts `[devices, cells]` against the reference's `[cells]`.

    `edges` `[cells + 1]` of a number's bins; None: the cells are classes. Devices without a count are left out.
    `effects`: also the sizes and their p-values, which are simulated from `seed`. The p-value is 1 with fewer than two
    devices and where nothing could differ. Raises InvalidRequestError when shapes do not fit.
    """
    check_edges_fit(edges, len(reference))
    evidence = compare_devices(counts, reference, ordered=edges is not None, alpha=alpha)
    if not effects or len(reference) < 2 or not reference.any():
        return evidence
    by_device = shares(counts)
    if len(by_device) < 2:
        return evidence
    size = fleet_effect(by_device, reference, edges, values=int(counts.sum()), rank=evidence.effect, seed=seed)
    return Evidence(p_value=evidence.p_value, e_value=evidence.e_value, method=evidence.method, effect=size)


def compare_devices(counts: Counts, reference: Counts, *, ordered: bool, alpha: float) -> Evidence:
    """As `against_reference`, with the move of the mean rank (where cells are `ordered`) as the only size."""
    check_level("alpha", alpha)
    check_counts("counts", counts, len(reference))
    counts = counts[counts.any(axis=1)]
    if len(counts) < 2 or len(reference) < 2 or not reference.any():
        return nothing_to_say(METHOD)
    scores = moment_scores(reference) if ordered else class_scores(reference)
    compared = _compare(counts, reference, scores)
    if compared.trace <= NO_VARIANCE:
        return nothing_to_say(METHOD)
    length = float(compared.difference @ compared.difference)
    p_value = dempster_p_value(length, compared.parts, cross_traces=compared.cross_traces)
    effect = Effect()
    if ordered:
        shift, interval = _rank_shift(counts, reference, alpha)
        effect = Effect(shift_rank=shift, shift_interval=None if interval is None else (interval.lower, interval.upper))
    return Evidence(p_value=p_value, e_value=e_value_of(p_value), method=METHOD, effect=effect)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """The difference of mean scores `[k]`, the parts of its variance and their cross traces."""

    difference: Matrix
    parts: list[VariancePart]
    cross_traces: float

    @property
    def trace(self) -> float:
        return sum(part.trace for part in self.parts)


def _compare(counts: Counts, reference: Counts, scores: Matrix) -> _Compared:
    totals = counts.sum(axis=1)
    by_device = counts / totals[:, None] @ scores
    expected = smoothed(reference)
    mean = expected @ scores
    centred = scores - mean
    of_values = (centred * expected[:, None]).T @ centred
    between = np.atleast_2d(np.cov(by_device, rowvar=False))
    hidden = _hidden(of_values - _within(counts, totals, by_device, scores), between)
    known = float(reference.sum()) - 1.0
    matrices = [between / len(counts), hidden / len(counts), of_values / reference.sum()]
    freedoms = [len(counts) - 1.0, known, known]
    total = sum(matrices)
    squares = sum(float((matrix**2).sum()) for matrix in matrices)
    return _Compared(
        difference=by_device.mean(axis=0) - mean,
        parts=[variance_part(matrix, freedom) for matrix, freedom in zip(matrices, freedoms, strict=True)],
        cross_traces=float((total**2).sum()) - squares,
    )


def _within(counts: Counts, totals: Counts, by_device: Matrix, scores: Matrix) -> Matrix:
    """The mean variance of the scores within a device `[k, k]`, without bias; of devices with two values or more."""
    several = totals > 1
    if not several.any():
        return np.zeros((scores.shape[1], scores.shape[1]))
    weights = 1.0 / (totals[several] - 1.0)
    cells = weights @ counts[several]
    means = by_device[several]
    second = (scores * cells[:, None]).T @ scores
    found: Matrix = (second - (means * (weights * totals[several])[:, None]).T @ means) / several.sum()
    return found


def _hidden(missing: Matrix, between: Matrix) -> Matrix:
    """What to add to the variance `between` devices so that its trace is that of the spread `missing` within them."""
    values, vectors = np.linalg.eigh((missing + missing.T) / 2)
    positive = np.maximum(values, 0.0)
    gap = float(missing.trace()) - float(between.trace())
    if gap <= 0 or not positive.any():
        return np.zeros_like(missing)
    found: Matrix = (vectors * (positive * (gap / positive.sum()))) @ vectors.T
    return found


def _rank_shift(counts: Counts, reference: Counts, alpha: float) -> tuple[float, Interval | None]:
    compared = _compare(counts, reference, ranks(reference)[:, None])
    shift = float(compared.difference[0])
    return shift, mean_interval(shift, compared.parts, alpha=alpha)
