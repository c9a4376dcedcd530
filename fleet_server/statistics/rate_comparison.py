"""Two groups' rates compared while events come in, and whether the groups have the sizes they were designed to have.

Units are independent: requests whose arm was drawn request by request, or devices that did or did not. Requests of
devices that were assigned whole are not, and the device is then the unit (`confidence_sequences.mean_interval`).

- `relative_lift_interval`: the delta method's variance in the asymptotic confidence sequence (Waudby-Smith et al.).
- `sample_ratio_p_value`: Pearson's chi-squared, for one look.
- `sample_ratio_sequential_p_value`: multinomial against Dirichlet mixture, for any looks (Lindon and Malek 2022,
  "Anytime-valid inference for multinomial count data").
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln
from scipy.stats import chi2

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.confidence_sequences import estimate_interval
from fleet_server.statistics.intervals import Interval, check_level, check_positive

SAMPLE_RATIO_LEVEL = 0.0005
"""Below it an experiment's assignment is broken, and its other figures are not to be read."""
CONCENTRATION = 10_000.0
"""How near to the design the ratios of a broken assignment are expected, in units of assigned ones."""


def relative_lift(*, control: tuple[int, int], treated: tuple[int, int]) -> tuple[float, float]:
    """(treated rate / control rate - 1, its standard error by the delta method) of (successes, trials) each.

    Raises InvalidRequestError for what are no counts, and without a success in both.
    """
    for successes, trials in (control, treated):
        if not 0 < successes <= trials:
            raise InvalidRequestError(f"{successes} successes in {trials} trials give no ratio: use 0 < successes")
    rates = [successes / trials for successes, trials in (control, treated)]
    ratio = rates[1] / rates[0]
    relative = sum((1 - rate) / successes for rate, (successes, _) in zip(rates, (control, treated), strict=True))
    return ratio - 1, ratio * math.sqrt(relative)


def relative_lift_interval(
    *, control: tuple[int, int], treated: tuple[int, int], alpha: float, trials_opt: float
) -> Interval | None:
    """Where the true relative lift lies, at error rate `alpha` over all looks, tightest at `trials_opt` trials in all.

    None when it cannot be told: all trials succeeded.

    >>> found = relative_lift_interval(control=(1396, 3000), treated=(2422, 3461), alpha=0.05, trials_opt=5000)
    >>> round(found.lower, 5), round(found.upper, 5)
    (0.40098, 0.60675)
    """
    lift, error = relative_lift(control=control, treated=treated)
    size = control[1] + treated[1]
    return estimate_interval(lift, standard_error=error, size=size, alpha=alpha, size_opt=trials_opt)


def rate_difference_interval(
    *, control: tuple[int, int], treated: tuple[int, int], alpha: float, trials_opt: float
) -> Interval | None:
    """As `relative_lift_interval`, for treated rate - control rate."""
    variance, rates = 0.0, []
    for successes, trials in (control, treated):
        if not 0 <= successes <= trials or not trials:
            raise InvalidRequestError(f"{successes} successes in {trials} trials: use 0 <= successes <= trials")
        rates.append(successes / trials)
        variance += rates[-1] * (1 - rates[-1]) / trials
    return estimate_interval(
        rates[1] - rates[0], standard_error=math.sqrt(variance), size=control[1] + treated[1], alpha=alpha,
        size_opt=trials_opt,
    )  # fmt: skip


def sample_ratio_p_value(counts: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """The chance of sizes `[groups]` this far from the designed `weights`, equal without them; for one look.

    >>> f"{sample_ratio_p_value([821588, 815482]):.2e}"
    '1.82e-06'
    """
    sizes, shares = _design(counts, weights)
    total = float(sizes.sum())
    if not total:
        return 1.0
    expected = total * shares
    return float(chi2.sf(float(((sizes - expected) ** 2 / expected).sum()), sizes.size - 1))


def sample_ratio_log_e_value(
    counts: ArrayLike, *, weights: ArrayLike | None = None, concentration: float = CONCENTRATION
) -> float:
    """ln of the evidence, an e-process, that groups are not filled in proportion to `weights`."""
    check_positive("concentration", concentration)
    sizes, shares = _design(counts, weights)
    prior = concentration * shares
    log_mixture = gammaln(concentration) - gammaln(concentration + sizes.sum())
    log_mixture += float((gammaln(prior + sizes) - gammaln(prior)).sum())
    return float(log_mixture - sizes @ np.log(shares))


def sample_ratio_sequential_p_value(
    counts: ArrayLike, *, weights: ArrayLike | None = None, concentration: float = CONCENTRATION
) -> float:
    """As `sample_ratio_p_value`, at any look: the smallest of all looks so far is valid too.

    >>> round(sample_ratio_sequential_p_value([500, 600]), 5)
    0.67145
    """
    return min(1.0, math.exp(-sample_ratio_log_e_value(counts, weights=weights, concentration=concentration)))


def is_sample_ratio_broken(counts: ArrayLike, *, weights: ArrayLike | None = None, alpha: float) -> bool:
    """Whether either the sequential test at `alpha`, or the chi-squared test at SAMPLE_RATIO_LEVEL, says so."""
    check_level("alpha", alpha)
    return (
        sample_ratio_sequential_p_value(counts, weights=weights) <= alpha
        or sample_ratio_p_value(counts, weights=weights) < SAMPLE_RATIO_LEVEL
    )


def _design(counts: ArrayLike, weights: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sizes = np.asarray(counts, dtype=np.float64)
    shares = np.ones_like(sizes) if weights is None else np.asarray(weights, dtype=np.float64)
    if sizes.ndim != 1 or sizes.size < 2 or not bool(((sizes >= 0) & np.isfinite(sizes)).all()):
        raise InvalidRequestError("a sample ratio needs the sizes, from 0, of two groups or more")
    if shares.shape != sizes.shape or not bool(((shares > 0) & np.isfinite(shares)).all()):
        raise InvalidRequestError(f"{sizes.size} groups have as many weights above 0")
    return sizes, shares / shares.sum()
