"""What one inference answers, and the class it chose.

Invariant: a prediction's id is made at most once, and only when somebody asks: most callers never do.
A `Struct`, not a dataclass: one is made per inference, and this is an eighth of the price.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from numpy.typing import NDArray

from edge_agent.telemetry.series import SeriesKey


class Prediction(Struct, eq=False):
    """The outputs of one inference and what made them: `model`, `version`, `variant`, `arm`.

    `latency_us` is from the call to its answer, the wait for a lane included. `class_index` and `label` are the
    winning class of a classification of one sample, else None. `number` counts the agent's predictions.
    `name_it` is called once, at the first use of `id`, which names this prediction for its later outcome.
    """

    outputs: dict[str, NDArray[Any]]
    made_by: SeriesKey
    latency_us: float
    label: str | None
    class_index: int | None
    number: int
    name_it: Callable[[Prediction], str]
    _id: str | None = None

    @property
    def model(self) -> str:
        """The model that answered."""
        return self.made_by.model

    @property
    def version(self) -> str:
        """Its version."""
        return self.made_by.version

    @property
    def variant(self) -> str:
        """The variant of the version."""
        return self.made_by.variant

    @property
    def arm(self) -> str:
        """The arm of the model that this call met."""
        return self.made_by.arm

    @property
    def id(self) -> str:
        """The prediction's id, for `report_outcome` after minutes or days."""
        if self._id is None:
            self._id = self.name_it(self)
        return self._id


def class_scores(outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """A classifier's scores: its first output of floats (a label may stand before it), else its first."""
    first = next(iter(outputs.values()))
    if first.dtype.kind == "f" or len(outputs) == 1:
        return first
    return next((array for array in outputs.values() if array.dtype.kind == "f" and array.ndim > 1), first)


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
