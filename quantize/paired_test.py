"""McNemar's test: whether two classifiers that answered the same samples differ by more than chance.

Only the samples that one of them got right and the other wrong tell anything; with no difference, each of those is
as likely to favour the one as the other (McNemar, Psychometrika 1947; the exact form is the two-sided sign test).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXACT_PAIRS = 10_000


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """The discordant pairs and the two-sided p-value."""

    first_only: int
    second_only: int
    p_value: float


def mcnemar(first_right: NDArray[Any], second_right: NDArray[Any]) -> PairedTest:
    """Compare two boolean arrays `[n]`: whether the first and the second answered each sample rightly."""
    first_only = int(np.count_nonzero(first_right & ~second_right))
    second_only = int(np.count_nonzero(second_right & ~first_right))
    return PairedTest(
        first_only=first_only, second_only=second_only, p_value=_two_sided(first_only, first_only + second_only)
    )


def _two_sided(successes: int, trials: int) -> float:
    """The probability of a split at least as uneven as this one between two equal chances."""
    fewer = min(successes, trials - successes)
    if trials > _EXACT_PAIRS:  # the normal approximation with its continuity correction, exact to four digits here
        return math.erfc(max(0.0, (trials / 2 - fewer - 0.5) / math.sqrt(trials / 4)) / math.sqrt(2))
    tail = sum(math.comb(trials, count) for count in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**trials))
