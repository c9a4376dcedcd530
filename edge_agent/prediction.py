"""What one inference answers, and the class it chose.

Invariant: a prediction's id is made at most once, and only when somebody asks: most callers never do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass(slots=True, kw_only=True)
class Prediction:
    """The outputs of one inference and what made them.

    `class_index` and `label` are the winning class of a classification of one sample, else None.
    `make_id` is called once, at the first use of `id`, which names this prediction for its later outcome.
    """

    outputs: dict[str, NDArray[Any]]
    model: str
    version: str
    variant: str
    arm: str
    latency_us: float
    label: str | None
    class_index: int | None
    make_id: Callable[[], str] = field(repr=False, compare=False)
    _id: str | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def id(self) -> str:
        """The prediction's id, for `report_outcome` after minutes or days."""
        if self._id is None:
            self._id = self.make_id()
        return self._id


def winning_class(scores: NDArray[Any], labels: Sequence[str] = ()) -> tuple[int | None, str | None]:
    """Index and label of the largest of one sample's class `scores`, of shape `[classes]` or `[1, ..., classes]`.

    (None, None) where no single class wins: several samples, fewer than two classes, text, or a score that
    is not a number. The label is None when `labels` does not reach the index.
    """
    if scores.ndim == 0 or scores.size < 2 or scores.shape[-1] != scores.size or scores.dtype.kind not in "iuf":
        return None, None
    index = int(scores.argmax())
    best = scores.flat[index]
    if best != best:  # noqa: PLR0124 - only NaN differs from itself, and argmax stops at the first one
        return None, None
    return index, labels[index] if index < len(labels) else None
