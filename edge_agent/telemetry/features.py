"""Features: one number per sample, extracted from a model's inputs to watch them for drift.

The same functions make the reference when a bundle is built and the live values on the device, so both
are the same quantity. Invariants, in the order they are checked:
1. a manifest that names an unknown extractor, a wrong parameter or an unfit input is refused before its
   model runs (`check_extractor`), never skipped in silence;
2. an extractor never changes its input and always answers float64 `[n]` for a batch of `n`;
3. a NaN or an infinity in a sample shows in that sample's value and in no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edge_agent.errors import BundleRefusedError, InvalidInputError
from fleet_protocol.manifest import FeatureReference, TensorSpec

Values = NDArray[np.float64]
Extractor = Callable[[NDArray[Any], Mapping[str, float]], Values]


class ExtractorRule(Struct, frozen=True, kw_only=True):
    """An extractor and what it asks of its input and parameters.

    `rank` is the least number of dimensions, the batch included. A `parameter` is a whole number from 0
    that picks one of the places on axis `parameter_axis`, or, without that axis, of the flattened sample.
    """

    extract: Extractor
    rank: int
    parameter: str = ""
    parameter_axis: int | None = None


def extract(reference: FeatureReference, inputs: Mapping[str, NDArray[Any]]) -> Values:
    """The feature of every sample: float64 `[n]`, where axis 0 of `reference.input` is the batch.

    Raises InvalidInputError when the input is absent or has too few dimensions or places, and
    BundleRefusedError for an extractor that `check_extractor` would have refused.
    """
    rule = _rule(reference)
    array = inputs.get(reference.input)
    if array is None:
        raise InvalidInputError(f"feature {reference.name!r} reads the input {reference.input!r}, which was not given")
    if array.ndim < rule.rank:
        raise InvalidInputError(
            f"feature {reference.name!r} needs {rule.rank} dimensions, input {reference.input!r} has {array.ndim}"
        )
    return rule.extract(array, reference.parameters)


def check_extractor(reference: FeatureReference, inputs: Sequence[TensorSpec] | None = None) -> None:
    """Refuse a feature that could not be extracted; with a model's `inputs`, also one that does not fit them.

    Raises BundleRefusedError.
    """
    rule = _rule(reference)
    where = f"feature {reference.name!r} (extractor {reference.extractor!r})"
    expected = {rule.parameter} if rule.parameter else set()
    if set(reference.parameters) != expected:
        raise BundleRefusedError(
            f"{where} takes the parameters {sorted(expected)}, not {sorted(reference.parameters)}: rebuild the bundle"
        )
    for name, value in reference.parameters.items():
        if not (value >= 0 and float(value).is_integer()):
            raise BundleRefusedError(f"{where}: {name} must be a whole number from 0, not {value}: rebuild the bundle")
    if inputs is not None:
        _check_input(reference, rule, inputs, where)


def _check_input(reference: FeatureReference, rule: ExtractorRule, inputs: Sequence[TensorSpec], where: str) -> None:
    spec = next((tensor for tensor in inputs if tensor.name == reference.input), None)
    if spec is None:
        names = ", ".join(tensor.name for tensor in inputs)
        raise BundleRefusedError(f"{where} reads the input {reference.input!r}; the model has {names}")
    if spec.datatype == "BYTES":
        raise BundleRefusedError(f"{where} needs numbers; input {spec.name!r} holds BYTES")
    if len(spec.shape) < rule.rank:
        raise BundleRefusedError(
            f"{where} needs {rule.rank} dimensions, the batch first; input {spec.name!r} has {len(spec.shape)}"
        )
    if rule.parameter:
        sizes = spec.shape[1:] if rule.parameter_axis is None else [spec.shape[rule.parameter_axis]]
        places = 1
        for size in sizes:
            places *= size
        if all(size >= 0 for size in sizes) and reference.parameters[rule.parameter] >= places:
            raise BundleRefusedError(f"{where}: input {spec.name!r} has only {places} places to pick from")


def _rule(reference: FeatureReference) -> ExtractorRule:
    rule = EXTRACTORS.get(reference.extractor)
    if rule is None:
        raise BundleRefusedError(
            f"feature {reference.name!r} names the extractor {reference.extractor!r}; this agent has "
            f"{', '.join(EXTRACTORS)}: upgrade the agent or rebuild the bundle"
        )
    return rule


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(len(array), math.prod(array.shape[1:]))  # -1 is undefined for an empty batch


def _mean(array: NDArray[Any], _: Mapping[str, float]) -> Values:
    flat = _flat(array)
    total: Values = np.add.reduce(flat, axis=1, dtype=np.float64)
    if not flat.shape[1]:
        return np.full(len(flat), np.nan)  # as numpy answers for nothing, without its warning
    total /= flat.shape[1]
    return total


def _std(array: NDArray[Any], _: Mapping[str, float]) -> Values:
    mean = _mean(array, _)
    # centred first: the mean of squares less the squared mean cancels to noise for large offsets
    with np.errstate(invalid="ignore"):
        centred = _flat(array) - mean[:, None]
        values: Values = np.sqrt(np.einsum("ij,ij->i", centred, centred) / max(centred.shape[1], 1))
    return values if centred.shape[1] else mean


def _sharpness(array: NDArray[Any], _: Mapping[str, float]) -> Values:
    # unsigned pixels would wrap around in a difference
    image = array if array.dtype.kind == "f" and array.dtype.itemsize >= 4 else array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        down = _flat(np.abs(image[..., 1:, :] - image[..., :-1, :]))
        across = _flat(np.abs(image[..., :, 1:] - image[..., :, :-1]))
        total: Values = np.add.reduce(down, axis=1, dtype=np.float64) + np.add.reduce(across, axis=1, dtype=np.float64)
    total /= max(down.shape[1] + across.shape[1], 1)
    return total


def _channel_mean(array: NDArray[Any], parameters: Mapping[str, float]) -> Values:
    channel = int(parameters["channel"])
    if channel >= array.shape[1]:
        raise InvalidInputError(f"channel_mean reads channel {channel}; the input has {array.shape[1]}")
    return _mean(array[:, channel], parameters)


def _column(array: NDArray[Any], parameters: Mapping[str, float]) -> Values:
    flat, index = _flat(array), int(parameters["index"])
    if index >= flat.shape[1]:
        raise InvalidInputError(f"column reads place {index}; a sample has {flat.shape[1]}")
    values: Values = flat[:, index].astype(np.float64)
    return values


EXTRACTORS: Mapping[str, ExtractorRule] = {
    "mean": ExtractorRule(extract=_mean, rank=1),
    "std": ExtractorRule(extract=_std, rank=1),
    "brightness": ExtractorRule(extract=_mean, rank=3),
    "sharpness": ExtractorRule(extract=_sharpness, rank=3),
    "channel_mean": ExtractorRule(extract=_channel_mean, rank=2, parameter="channel", parameter_axis=1),
    "column": ExtractorRule(extract=_column, rank=2, parameter="index"),
}
"""Every extractor by its name in a manifest. `mean` and `std` are over all of a sample; `brightness` is the
mean of an image as it was given; `sharpness` the mean absolute difference between neighbours on the last two
axes; `channel_mean` the mean of one place on axis 1; `column` one place of the flattened sample."""
