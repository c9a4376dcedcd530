"""The truth about a prediction, as its caller reports it: checked against what was predicted."""

from __future__ import annotations

import math

from edge_agent.errors import InvalidInputError
from edge_agent.telemetry.prediction_ids import PredictionId


def truth_of(
    made: PredictionId, *, label: int | str | None, value: float | None, correct: bool | None
) -> tuple[bool | None, float | None]:
    """(correct, squared error) of the prediction `made`, one of them None.

    Exactly one of `label` (class index or name), `value` (regression) and `correct` is given.
    Raises InvalidInputError for a truth that does not fit the prediction.
    """
    if [label, value, correct].count(None) != 2:
        raise InvalidInputError("an outcome needs exactly one of label, value and correct")
    if label is not None:
        return _is_correct(made, label), None
    if value is not None:
        return None, _squared_error(made, value)
    return correct, None


def _is_correct(made: PredictionId, label: int | str) -> bool:
    if made.predicted_class is None:
        raise InvalidInputError(f"this prediction of {made.model} has no class: report `value` or `correct` instead")
    if isinstance(label, str):
        if made.predicted_label is None:
            raise InvalidInputError(f"{made.model} has no class names: report the class index")
        return label == made.predicted_label
    return label == made.predicted_class


def _squared_error(made: PredictionId, value: float) -> float:
    if made.predicted_value is None:
        raise InvalidInputError(f"this prediction of {made.model} has no single value: report `correct` instead")
    error = value - made.predicted_value
    squared = error * error  # not a power: that raises where the product is infinite
    if not math.isfinite(squared):
        raise InvalidInputError(
            f"value {value} against the predicted {made.predicted_value} gives no finite error: "
            "report `correct` instead"
        )
    return squared
