"""JSON to arrays and back.

Invariants:
- lists of numbers stay lists of numbers for the runtime to convert; anything else (text, null) becomes an
  array of objects, never one of fixed-width text: numpy would reserve the longest string's size for every
  element, which lets a small body ask for terabytes;
- one bad item of a batch is that item's error alone;
- numbers keep every digit; NaN and the infinities, which JSON does not have, are written as null;
- what does not parse is one InvalidInputError.
"""

from __future__ import annotations

from types import GenericAlias
from typing import Any, cast

import msgspec
import numpy as np

from edge_agent.errors import InvalidInputError
from edge_agent.prediction import Prediction

MAX_NUMERIC_DEPTH = 8
"""Lists of numbers nested deeper than this take the slower path for mixed values."""

Inputs = Any
"""A sample as it came: a dict of tensors by name, or one bare tensor for a model with a single input."""


class PredictBody(msgspec.Struct, frozen=True):
    """The body of /predict, and the part of a serverless event that matters."""

    inputs: dict[str, Any] | list[Any]
    model: str | None = None


class BatchBody(msgspec.Struct, frozen=True):
    """The body of /batch: one item per sample, or why that item is none."""

    inputs: list[Any]
    model: str | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The truth about one prediction, in exactly one of three forms."""

    id: str
    label: int | str | None = None
    value: float | None = None
    correct: bool | None = None


def nested_lists(element: Any) -> Any:
    """The type of lists of `element`, flat or nested up to MAX_NUMERIC_DEPTH deep."""
    tensor = element
    for _ in range(MAX_NUMERIC_DEPTH - 1):
        tensor = element | GenericAlias(list, (tensor,))
    return GenericAlias(list, (tensor,))


def _numeric_inputs() -> Any:
    number: Any = bool | int | float
    return GenericAlias(dict, (str, number | nested_lists(number))) | nested_lists(number)


_NUMERIC_INPUTS = _numeric_inputs()
_NUMERIC_PREDICT = msgspec.json.Decoder(
    msgspec.defstruct("NumericPredictBody", [("inputs", _NUMERIC_INPUTS), ("model", str | None, None)])
)
_NUMERIC_BATCH = msgspec.json.Decoder(
    msgspec.defstruct(
        "NumericBatchBody", [("inputs", GenericAlias(list, (_NUMERIC_INPUTS,))), ("model", str | None, None)]
    )
)
_ANY_PREDICT = msgspec.json.Decoder(PredictBody)
_ANY_BATCH = msgspec.json.Decoder(BatchBody)
_ENCODER = msgspec.json.Encoder()
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What a decoder raises for a body that is not what it should be; `refusal` makes the caller's error of it."""


def decode_predict(body: bytes | bytearray) -> PredictBody:
    """The body of /predict. Raises InvalidInputError."""
    try:
        return cast(PredictBody, _NUMERIC_PREDICT.decode(body))
    except msgspec.ValidationError:
        pass  # perhaps text: the slower decoder knows, and says what is wrong
    except UNREADABLE as error:
        raise refusal(error) from None
    try:
        decoded = _ANY_PREDICT.decode(body)
    except UNREADABLE as error:
        raise refusal(error) from None
    return PredictBody(inputs=_as_objects(decoded.inputs), model=decoded.model)


def decode_batch(body: bytes | bytearray) -> BatchBody:
    """The body of /batch, each item inputs or the InvalidInputError that says why not. Raises InvalidInputError."""
    try:
        return cast(BatchBody, _NUMERIC_BATCH.decode(body))
    except msgspec.ValidationError:
        pass  # some item is not all numbers: each is judged alone
    except UNREADABLE as error:
        raise refusal(error) from None
    try:
        decoded = _ANY_BATCH.decode(body)
    except UNREADABLE as error:
        raise refusal(error) from None
    return BatchBody(inputs=[_item_inputs(item) for item in decoded.inputs], model=decoded.model)


def decode_outcomes(body: bytes | bytearray) -> Outcome | list[Outcome | InvalidInputError]:
    """One outcome; or those of {"outcomes": [...]}, each checked alone. Raises InvalidInputError."""
    try:
        decoded = msgspec.json.decode(body)
    except UNREADABLE as error:
        raise refusal(error) from None
    several = decoded.get("outcomes") if isinstance(decoded, dict) else None
    if not isinstance(several, list):
        return _outcome(decoded)
    checked: list[Outcome | InvalidInputError] = []
    for item in several:
        try:
            checked.append(_outcome(item))
        except InvalidInputError as error:
            checked.append(error)
    return checked


def describe_prediction(prediction: Prediction) -> dict[str, Any]:
    """A prediction as the JSON object that /predict and /batch answer with."""
    return {
        "id": prediction.id,
        "model": prediction.model,
        "version": prediction.version,
        "variant": prediction.variant,
        "arm": prediction.arm,
        "outputs": {name: array.tolist() for name, array in prediction.outputs.items()},
        "label": prediction.label,
        "class": prediction.class_index,
        "latency_us": round(prediction.latency_us, 1),
    }


def encode_json(value: Any) -> bytes:
    """JSON; NaN and the infinities become null."""
    return _ENCODER.encode(value)


def _item_inputs(item: Any) -> Inputs | InvalidInputError:
    try:
        return msgspec.convert(item, _NUMERIC_INPUTS)
    except msgspec.ValidationError:
        pass  # perhaps text
    try:
        return _as_objects(item)
    except InvalidInputError as error:
        return error


def _as_objects(inputs: Any) -> Inputs:
    try:
        if isinstance(inputs, list):
            return np.asarray(inputs, dtype=object)
        if isinstance(inputs, dict):
            return {name: np.asarray(value, dtype=object) for name, value in inputs.items()}
    except (ValueError, RecursionError):
        raise InvalidInputError("a tensor is not a regular array: nested lists must have the same length") from None
    raise InvalidInputError("inputs are an object of tensors by name, or one nested list: this is neither")


def _outcome(item: Any) -> Outcome:
    try:
        outcome = msgspec.convert(item, Outcome)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"not an outcome: {error}") from None
    given = [name for name in ("label", "value", "correct") if getattr(outcome, name) is not None]
    if len(given) != 1:
        raise InvalidInputError(
            f"an outcome has exactly one of label, value and correct: this one has {' and '.join(given) or 'none'}"
        )
    return outcome


def refusal(error: Exception) -> InvalidInputError:
    """The caller's error for a body that did not decode."""
    reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
    return InvalidInputError(f"the body is not the JSON that this path takes: {reason}")
