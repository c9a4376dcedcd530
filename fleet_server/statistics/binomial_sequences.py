"""A confidence sequence for a success rate: intervals that hold at every look, together.

Two-sided beta-binomial mixture (Howard, Ramdas, McAuliffe, Sekhon 2021, proposition 7; semantics of the
confseq reference library's `bernoulli_confidence_interval`). For a true rate p and k successes in n trials

    M(p) = B(p c + k, (1 - p) c + n - k) / (B(p c, (1 - p) c) p^k (1 - p)^(n - k))

is a nonnegative martingale that starts at 1, so it ever reaches 1/alpha with probability at most alpha
(Ville): the rates with M(p) < 1/alpha hold the truth at all times at once with probability 1 - alpha.
`c`, the weight of the mixture, follows from `trials_opt`, where the interval is tightest. It is chosen
before the data. The trials must be independent given their rate; there is no need for a fixed number.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaln

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.intervals import Interval, check_level, check_positive
from fleet_server.statistics.normal_mixture import best_rho

_SMALLEST_RATE = 1e-300
_SMALLEST_WEIGHT = 1e-3  # keeps the prior proper when `trials_opt` is very small, as the reference library does
_TOLERANCE = 1e-13


def rate_interval(successes: int, trials: int, alpha: float, *, trials_opt: float, alpha_opt: float = 0.05) -> Interval:
    """The rates that `successes` in `trials` have not ruled out at error rate `alpha`, at any look.

    `trials_opt` is the number of trials at which the interval is tightest. Without trials the interval is
    [0, 1]. Raises InvalidRequestError for numbers that are not counts or rates.

    >>> interval = rate_interval(700, 1000, 0.05, trials_opt=100)
    >>> round(interval.lower, 5), round(interval.upper, 5)
    (0.65163, 0.74595)
    """
    check_level("alpha", alpha)
    check_positive("trials_opt", trials_opt)
    if not 0 <= successes <= trials:
        raise InvalidRequestError(f"{successes} successes in {trials} trials: use 0 <= successes <= trials")
    if trials == 0:
        return Interval(lower=0.0, upper=1.0)
    weight = mixture_weight(trials_opt, alpha_opt)
    log_threshold = math.log(1 / alpha)
    return Interval(
        lower=_lower(successes, trials, weight, log_threshold),
        upper=1.0 - _lower(trials - successes, trials, weight, log_threshold),  # M is the same seen from failures
    )


def mixture_weight(trials_opt: float, alpha_opt: float = 0.05) -> float:
    """c, with which the interval is tightest at `trials_opt` trials for error rate `alpha_opt`."""
    check_positive("trials_opt", trials_opt)
    return max(best_rho(trials_opt, alpha_opt) - 1, _SMALLEST_WEIGHT)


def log_evidence(
    successes: ArrayLike, trials: float, rate: float, *, trials_opt: float, alpha_opt: float = 0.05
) -> NDArray[np.float64]:
    """ln M(`rate`) for `successes` `[...]` in `trials`, which need not be whole: convex in the successes.

    >>> interval = rate_interval(700, 1000, 0.05, trials_opt=100)
    >>> round(float(np.exp(-log_evidence(700, 1000, interval.lower, trials_opt=100))), 6)
    0.05
    """
    check_level("rate", rate)
    weight = mixture_weight(trials_opt, alpha_opt)
    hits = np.asarray(successes, dtype=np.float64)
    log_mixture = betaln(rate * weight + hits, (1 - rate) * weight + trials - hits)
    log_likelihood = hits * math.log(rate) + (trials - hits) * math.log1p(-rate)
    evidence: NDArray[np.float64] = log_mixture - betaln(rate * weight, (1 - rate) * weight) - log_likelihood
    return evidence


def _lower(successes: int, trials: int, weight: float, log_threshold: float) -> float:
    if successes == 0:
        return 0.0

    def excess(rate: float) -> float:
        if rate >= 1:
            return -log_threshold  # only reached when every trial succeeded, where M(1) = 1
        log_mixture = betaln(rate * weight + successes, (1 - rate) * weight + trials - successes)
        log_prior = betaln(rate * weight, (1 - rate) * weight)
        log_likelihood = successes * math.log(rate) + (trials - successes) * math.log1p(-rate)
        return float(log_mixture - log_prior - log_likelihood - log_threshold)

    if excess(_SMALLEST_RATE) <= 0:
        return 0.0
    return float(brentq(excess, _SMALLEST_RATE, successes / trials, xtol=_TOLERANCE))
