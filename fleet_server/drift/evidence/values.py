"""One device: values are the unit, and what they depend on each other is estimated from its windows (`dependence`).

Assumed: apart from that dependence, values are drawn from one distribution, and the windows are long enough for blocks
of them to be nearly independent. The values of both sides, as many as they are worth, are dealt anew to the two sides
SIMULATIONS times, and the statistic is held against these: exact for independent values at any number of them, where
laws for large samples are wrong at 20. Where no deal reaches the observed statistic, an exact bound or the large-sample
law says how much smaller the p-value is.

What is tested, and what lost:
- classes: the sum over classes of the squared likelihood ratio statistic "this class against the others" (G), which
  looks at the most unusual classes. Of scikit-learn's digits with class 0 gone it finds 0.38 of 40 runs at 50 values
  and a level of 1 %; the largest G alone 0.30, Pearson's chi-squared, which looks at all classes alike, 0.12; the
  largest z overlooks an absent class (0.12, where the largest G has 0.88, at 5 %).
- numbers: Neyman's smooth test of four moments in ranks. Of 200 runs at 50 values and 5 % it finds 0.78 of shifts by
  half a deviation (KS 0.79, W1 0.89) and 0.92 of spreads 1.5 times as wide (KS 0.28, W1 0.74).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy
from scipy.stats import chi2, hypergeom

from fleet_server.drift.evidence.dependence import MIN_BLOCKS, design_effect
from fleet_server.drift.evidence.effects import values_effect
from fleet_server.drift.evidence.result import (
    Counts,
    Evidence,
    Matrix,
    check_counts,
    check_edges_fit,
    e_value_of,
    nothing_to_say,
)
from fleet_server.drift.evidence.scores import class_scores, moment_scores, ranks
from fleet_server.drift.findings import Effect
from fleet_server.statistics.intervals import check_level

MIN_VALUES = 20
SIMULATIONS = 999
MAX_WORTH = 10**8
"""Values that a side counts for at most: more say nothing more, and are dealt slowly."""
METHOD_CLASSES = "values of one device, classes (simulated)"
METHOD_NUMBERS = "values of one device, moments in ranks (simulated)"


def one_device(
    windows: Counts,
    reference: Counts,
    *,
    edges: Matrix | None,
    alpha: float = 0.05,
    seed: int = 0,
    independent: bool = False,
    effects: bool = True,
) -> Evidence:
    """Hold one device's windows `[windows, cells]`, in time's order, against the reference `[cells]`.

    `edges` `[cells + 1]` of a number's bins; None: the cells are classes. `independent`: the caller knows that values
    are (samples in random order), and nothing is allowed for. Raises InvalidRequestError when shapes do not fit.
    """
    check_counts("windows", windows, len(reference))
    sides = _Sides(seen=windows, expected=reference[None, :], general=reference, edges=edges)
    designs = (1.0 if independent else sides.design(windows), 1.0)
    return sides.compare(designs, alpha=alpha, seed=seed, effects=effects)


def one_device_over_time(
    seen: Counts,
    expected: Counts,
    *,
    edges: Matrix | None,
    alpha: float = 0.05,
    seed: int = 0,
    effects: bool = True,
) -> Evidence:
    """Hold one device's windows `[windows, cells]` against its own earlier windows `[windows, cells]`.

    As `one_device`; dependence is estimated on both sides, so with fewer than MIN_BLOCKS windows on one there is
    nothing to say. A camera that looked at one scene before and at another one now has changed, and is found.
    """
    check_counts("the windows seen", seen, expected.shape[-1])
    check_counts("the windows expected", expected, expected.shape[-1])
    sides = _Sides(seen=seen, expected=expected, general=expected.sum(axis=0), edges=edges)
    if min(int(side.any(axis=1).sum()) for side in (seen, expected)) < MIN_BLOCKS:
        return nothing_to_say(sides.method)
    return sides.compare((sides.design(seen), sides.design(expected)), alpha=alpha, seed=seed, effects=effects)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """Windows `[windows, cells]` on both sides, and how values vary in general: counts `[cells]`."""

    seen: Counts
    expected: Counts
    general: Counts
    edges: Matrix | None

    @property
    def method(self) -> str:
        return METHOD_CLASSES if self.edges is None else METHOD_NUMBERS

    def scores(self) -> Matrix:
        counts = self.expected.sum(axis=0)
        return class_scores(counts) if self.edges is None else moment_scores(counts)

    def design(self, windows: Counts) -> float:
        """The design effect of one side's values."""
        total = windows.sum(axis=0)
        if windows.shape[1] < 2 or not total.any() or not self.general.any():
            return 1.0
        # of numbers the values themselves: ranks and moments vary less in the tails, where a drift may have led
        middles = None if self.edges is None else ((self.edges[:-1] + self.edges[1:]) / 2)[:, None]
        plain = class_scores(self.general) if middles is None else middles
        scores, totals = self.scores(), windows.sum(axis=1)
        return design_effect(
            windows @ scores / np.maximum(totals, 1)[:, None],
            totals,
            variance=_spread(total, scores),
            alike=_spread(total, plain) / max(_spread(self.general, plain), 1e-300),
        )

    def compare(self, designs: tuple[float, float], *, alpha: float, seed: int, effects: bool) -> Evidence:
        check_level("alpha", alpha)
        left, right = self.seen.sum(axis=0), self.expected.sum(axis=0)
        check_edges_fit(self.edges, len(right))
        if len(right) < 2 or not left.any() or not right.any():
            return nothing_to_say(self.method)
        worth = [_worth(side, by) for side, by in zip((left, right), designs, strict=True)]
        n, m = (int(side.sum()) for side in worth)
        p, q = left / left.sum(), right / right.sum()
        null = _dealt(worth[0] + worth[1], n, m, seed=seed)
        ordered = self.edges is not None
        test = _moments_p_value if ordered else _classes_p_value
        p_value = test((p, q), null, (n, m), self.scores())
        size = _rank((p, q), null, right, alpha) if ordered else Effect()
        if effects:
            size = values_effect((p, q), null, (n, m), self.edges, size)
        return Evidence(
            p_value=p_value, e_value=e_value_of(p_value), method=self.method, effect=size, design_effect=designs[0]
        )


Pair = tuple[Matrix, Matrix]
"""Shares of both sides, `[cells]` or `[simulations, cells]`."""


def _worth(counts: Counts, design: float) -> Counts:
    """Whole counts `[cells]` with the same shares, of as many independent values as `counts` are worth, 1 or more."""
    total = int(counts.sum())
    size = min(max(1, round(total / design)), MAX_WORTH)
    if size == total:
        return counts
    exact = counts * (size / total)
    whole: Counts = np.floor(exact).astype(np.int64)
    rest = np.argsort(whole - exact, kind="stable")[: size - int(whole.sum())]
    whole[rest] += 1
    return whole


def _dealt(pooled: Counts, n: int, m: int, *, seed: int) -> Pair:
    """Shares of both sides when the pooled values `[cells]` are dealt anew to them."""
    random = np.random.default_rng(seed)
    left = random.multivariate_hypergeometric(pooled, n, size=SIMULATIONS, method="marginals")
    return left / n, (pooled - left) / m


def _moments_p_value(seen: Pair, null: Pair, worth: tuple[int, int], scores: Matrix) -> float:
    observed = float((((seen[0] - seen[1]) @ scores) ** 2).sum())
    simulated = (((null[0] - null[1]) @ scores) ** 2).sum(axis=1)
    law = float(chi2.sf(observed / (1 / worth[0] + 1 / worth[1]), scores.shape[1]))
    return _resolved(observed, simulated, law)


def _classes_p_value(seen: Pair, null: Pair, worth: tuple[int, int], scores: Matrix) -> float:
    observed = _unusual(seen[0] @ scores, seen[1] @ scores, worth)
    simulated = _unusual(null[0] @ scores, null[1] @ scores, worth)
    return _resolved(float(observed), simulated, _exact_bound(seen[0] @ scores, seen[1] @ scores, worth))


def _resolved(observed: float, simulated: Matrix, below: float) -> float:
    """The simulated p-value, and `below` only where no simulation reached the statistic: valid where both are."""
    hits = int((simulated >= observed * (1 - 1e-9)).sum())
    found = (1.0 + hits) / (1.0 + SIMULATIONS)
    return min(found, below) if hits == 0 else found


def _unusual(p: Matrix, q: Matrix, worth: tuple[int, int]) -> Matrix:
    """Sum over classes of G^2, where G compares the class' shares `[..., classes]` with all others' together."""
    n, m = worth
    pooled = (p * n + q * m) / (n + m)
    parts = np.zeros_like(p)
    for share, size in ((p, n), (q, m)):
        # the logarithms' arguments are never 0 where their factors are not
        with np.errstate(divide="ignore", invalid="ignore"):
            parts += size * (xlogy(share, _over(share, pooled)) + xlogy(1 - share, _over(1 - share, 1 - pooled)))
    summed: Matrix = ((2 * np.maximum(parts, 0.0)) ** 2).sum(axis=-1)
    return summed


def _over(top: Matrix, bottom: Matrix) -> Matrix:
    ratio: Matrix = np.divide(top, bottom, out=np.ones_like(top), where=bottom > 0)
    return np.maximum(ratio, 1e-300)


def _exact_bound(p: Matrix, q: Matrix, worth: tuple[int, int]) -> float:
    """Fisher's exact test of every class against the others, the smallest, with Bonferroni."""
    n, m = worth
    left, right = np.rint(p * n).astype(np.int64), np.rint(q * m).astype(np.int64)
    both = left + right
    tails = np.minimum(hypergeom.cdf(left, n + m, both, n), hypergeom.sf(left - 1, n + m, both, n))
    return float(min(1.0, 2.0 * tails.min() * len(p)))


def _rank(seen: Pair, null: Pair, expected: Counts, alpha: float) -> Effect:
    """The move of the mean rank, with the interval that its simulated spread gives."""
    middles = ranks(expected)
    shift = float((seen[0] - seen[1]) @ middles)
    lower, upper = np.quantile((null[0] - null[1]) @ middles, [alpha / 2, 1 - alpha / 2])
    return Effect(shift_rank=shift, shift_interval=(shift - float(upper), shift - float(lower)))


def _spread(counts: Counts, scores: Matrix) -> float:
    """The trace of the scores' variance over values, without bias."""
    total = int(counts.sum())
    if total < 2:
        return 0.0
    share = counts / total
    mean = share @ scores
    return float(share @ (scores**2).sum(axis=1) - mean @ mean) * total / (total - 1)
