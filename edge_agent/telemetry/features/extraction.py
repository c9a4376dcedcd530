"""From a feature's name in a manifest to its values; see the package for the invariants.

| extractor | parameters | of a sample |
|---|---|---|
| mean, std | | all of its numbers |
| brightness | | an image's mean; with three channels its luma, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) |
| sharpness | | the mean absolute difference between neighbouring pixels, down and across |
| channel_mean | channel, axis (1 where absent) | the mean of one place on an axis; an image's last channels: axis 3 |
| column | index | one place of the flattened sample |
| spectral_centroid | | the mean frequency on the last axis, weighted by magnitude, from 0 to 1 (Nyquist) |
| projection | seed, index | its dot product with random direction `index` of `seed`, a Gaussian vector of length 1 |

Parameters are whole numbers from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from numpy.typing import NDArray

from edge_agent.errors import BundleRefusedError, InvalidInputError
from edge_agent.telemetry.features import extractors
from edge_agent.telemetry.features.extractors import DEFAULT_CHANNEL_AXIS, MAX_PROJECTED_PLACES, Values
from fleet_protocol.manifest import FeatureReference, TensorSpec

Extractor = Callable[[NDArray[Any], Mapping[str, float]], Values]
Shape = Sequence[int]
_VARIABLE = -1


def _fits_always(_: Shape, __: Mapping[str, float]) -> str:
    return ""


class ExtractorRule(Struct, frozen=True, kw_only=True):
    """An extractor and what it asks of its input and parameters.

    `rank` is the least number of dimensions, the batch included. `misfit` says what is wrong with a shape (-1 is
    variable) for the parameters, "" for nothing.
    """

    extract: Extractor
    rank: int
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    misfit: Callable[[Shape, Mapping[str, float]], str] = _fits_always


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
    given = set(reference.parameters)
    if not rule.required <= given <= rule.required | rule.optional:
        may = f" and may take {sorted(rule.optional)}" if rule.optional else ""
        raise BundleRefusedError(
            f"{where} takes the parameters {sorted(rule.required)}{may}, not {sorted(given)}: rebuild the bundle"
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
    misfit = rule.misfit(spec.shape, reference.parameters)
    if misfit:
        raise BundleRefusedError(f"{where}: input {spec.name!r} {misfit}")


def _rule(reference: FeatureReference) -> ExtractorRule:
    rule = EXTRACTORS.get(reference.extractor)
    if rule is None:
        raise BundleRefusedError(
            f"feature {reference.name!r} names the extractor {reference.extractor!r}; this agent has "
            f"{', '.join(EXTRACTORS)}: upgrade the agent or rebuild the bundle"
        )
    return rule


def _channel_misfit(shape: Shape, parameters: Mapping[str, float]) -> str:
    axis = int(parameters.get("axis", DEFAULT_CHANNEL_AXIS))
    if not 1 <= axis < len(shape):
        return f"has the axes 1 to {len(shape) - 1} beside the batch, not {axis}"
    if shape[axis] != _VARIABLE and parameters["channel"] >= shape[axis]:
        return f"has only {shape[axis]} places to pick from on axis {axis}"
    return ""


def _column_misfit(shape: Shape, parameters: Mapping[str, float]) -> str:
    places = _places(shape)
    return "" if places is None or parameters["index"] < places else f"has only {places} places to pick from"


def _projection_misfit(shape: Shape, _: Mapping[str, float]) -> str:
    places = _places(shape)
    return "" if places is None or places <= MAX_PROJECTED_PLACES else (
        f"has {places:,} numbers a sample; a projection takes at most {MAX_PROJECTED_PLACES:,}"
    )  # fmt: skip


def _places(shape: Shape) -> int | None:
    """How many numbers a sample has; None where that varies."""
    return None if _VARIABLE in shape[1:] else math.prod(shape[1:])


EXTRACTORS: Mapping[str, ExtractorRule] = {
    "mean": ExtractorRule(extract=extractors.mean, rank=1),
    "std": ExtractorRule(extract=extractors.std, rank=1),
    "brightness": ExtractorRule(extract=extractors.brightness, rank=3),
    "sharpness": ExtractorRule(extract=extractors.sharpness, rank=3),
    "channel_mean": ExtractorRule(
        extract=extractors.channel_mean,
        rank=2,
        required=frozenset({"channel"}),
        optional=frozenset({"axis"}),
        misfit=_channel_misfit,
    ),
    "column": ExtractorRule(extract=extractors.column, rank=2, required=frozenset({"index"}), misfit=_column_misfit),
    "spectral_centroid": ExtractorRule(extract=extractors.spectral_centroid, rank=2),
    "projection": ExtractorRule(
        extract=extractors.projection, rank=2, required=frozenset({"seed", "index"}), misfit=_projection_misfit
    ),
}
"""Every extractor by its name in a manifest; the table above says what each one is."""
