"""Many signals, one stated rate: at most alpha of the reports on a fleet without drift say "drift" of anything.

Weighted Holm (Holm 1979), which holds whatever the signals depend on. Each kind of signal has a weight, shared by the
signals of that kind: a table of sixty columns takes nothing from the predicted classes. With plain Holm a class that is
gone is found the later the more columns there are. The predicted classes weigh twice, for they have the least to go by
(a class of a tenth that is absent from 50 values is a chance of 0.005 to 0.03, and no more can be had of it), while
what features and embeddings find they find at a tenth of the level as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fleet_server.drift.findings import SignalKind
from fleet_server.errors import InvalidRequestError

_WEIGHTS = {SignalKind.CLASSES: 2.0}


def adjusted_p_values(kinds: Sequence[SignalKind], p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted so that calling "drift" what is at or under alpha keeps alpha over the whole report.

    `kinds` are the signals' kinds, in the order of `p_values`; only signals that could be judged take part. Raises
    InvalidRequestError when there are not as many of both.

    >>> adjusted_p_values([SignalKind.FEATURE, SignalKind.FEATURE, SignalKind.CLASSES], [0.5, 0.004, 0.03])
    [0.5, 0.024, 0.0375]
    """
    if len(kinds) != len(p_values):
        raise InvalidRequestError(f"{len(kinds)} kinds and {len(p_values)} p-values are not of the same signals")
    of_kind = Counter(kinds)
    return weighted_holm(p_values, [_WEIGHTS.get(kind, 1.0) / of_kind[kind] for kind in kinds])


def weighted_holm(p_values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, where twice the weight allows for twice the p-value (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index] / weights[index])
    adjusted = [1.0] * len(p_values)
    left, highest = sum(weights), 0.0
    for index in order:
        highest = max(highest, min(1.0, p_values[index] * left / weights[index]))
        adjusted[index] = highest
        left -= weights[index]
    return adjusted


def holm(p_values: Sequence[float]) -> list[float]:
    """`weighted_holm` with equal weights.

    >>> [round(p, 12) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    return weighted_holm(p_values, [1.0] * len(p_values))
