"""The classification extension: the best classes of an output as text, score:index or score:index:label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InvalidInputError

_DIGITS = {2: 5, 4: 9, 8: 17}
"""Significant digits that tell any two floats of so many bytes apart."""


def best_classes(name: str, scores: NDArray[Any], count: int, labels: Sequence[str]) -> NDArray[Any]:
    """The `count` best classes, or all where there are fewer, best first, a tie in the order of the classes.

    Scores of one dimension are one sample's; of more, the first dimension counts samples and the rest are their
    classes. Returns text of shape [count] or [samples, count]. Raises InvalidInputError for what has no order.
    """
    if scores.dtype.kind not in "iuf" or scores.ndim == 0:
        raise InvalidInputError(f"output {name!r} holds no scores to classify by")
    rows = scores.reshape(1, -1) if scores.ndim == 1 else scores.reshape(len(scores), -1)
    # sorted as floats, negated: the order of a tie stays, and NaN comes last
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    best = np.empty(order.shape, dtype=object)
    for sample, classes in enumerate(order.tolist()):
        for place, index in enumerate(classes):
            best[sample, place] = _described(rows[sample, index], index, labels)
    return best[0] if scores.ndim == 1 else best


def _described(score: Any, index: int, labels: Sequence[str]) -> str:
    number = f"{score:.{_DIGITS[score.itemsize]}g}" if score.dtype.kind == "f" else str(score)
    return f"{number}:{index}:{labels[index]}" if index < len(labels) else f"{number}:{index}"
